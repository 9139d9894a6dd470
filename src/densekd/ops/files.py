"""Files that appear whole or not at all, and where what can be made again is kept."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from densekd.errors import UserError

PARTIAL = ".partial"  # ends the name of a file that is not yet whole
# What to do about what a disk refuses.
REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room: the quota is used up",
    errno.EFBIG: "the limit on the size of a file is reached: raise it (ulimit -f), or write to another disk",
    errno.EROFS: "that disk is read-only: write somewhere else",
    errno.EACCES: "you may not write there: write somewhere else",
    errno.EPERM: "you may not write there: write somewhere else",
    errno.ENOTDIR: "a part of that path is a file and no folder: write somewhere else",
    errno.EEXIST: "a file stands where a folder is needed: write somewhere else",
    errno.EISDIR: "a folder has that name: give another name",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "the disk fails: look at the system's log before you write there again",
}


def disk_error(error: OSError, path: str | Path | None = None) -> UserError:
    """What the system refused, with the file and what to do about it."""
    name = path or error.filename or "a file"
    reason = error.strerror or str(error) or type(error).__name__
    number = error.errno or 0
    remedy = REMEDIES.get(number, "look at that file and its folder, then try again")
    return UserError(f"{name}: {reason}; {remedy}")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Errors of the system within become a `UserError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a neighbour of `path` to write to; once the body ends, it is flushed to disk and takes `path`'s name.

    A kill at any moment leaves the old file or the new one, never half of one. Several processes may write the same
    path: each has a neighbour of its own, and the last one holds. The file has the mode that the umask leaves,
    whatever library writes it.

    Raises:
        UserError: the file cannot be written (a full disk, a folder that is read-only).
    """
    path = Path(path)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(neighbour, "xb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
            yield neighbour
            with open(neighbour, "rb") as file:
                os.fsync(file.fileno())
            if os.stat(neighbour).st_mode & 0o777 != mode:
                os.chmod(neighbour, mode)
            os.replace(neighbour, path)
        finally:
            neighbour.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` to write into; once the body ends, it takes `path`'s name.

    Raises:
        UserError: `path` exists, or nothing can be written there.
    """
    path = Path(path)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    with writing(path):
        neighbour.mkdir(parents=True)
        try:
            yield neighbour
            if path.exists():
                raise UserError(f"{path} exists; give another name")
            os.rename(neighbour, path)
        finally:
            shutil.rmtree(neighbour, ignore_errors=True)


def check_new_or_empty(folder: Path) -> None:
    """UserError where a folder that is to be written holds anything, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; give the name of a new or empty folder")


def clear_partial(folder: Path, what: str, made: Callable[[Path], bool]) -> Path:
    """``FOLDER.partial``, where large data stand until they are complete; what an interrupted call left is deleted.

    Args:
        what: is written there, for the message.
        made: whether an entry is of those that are written there: nothing else may be deleted.
    """
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        if not partial.is_dir() or not all(map(made, partial.iterdir())):
            raise UserError(f"{partial} is in the way: {what} are written there first; move it")
        shutil.rmtree(partial)
    return partial


def take_name(partial: Path, folder: Path) -> None:
    """A complete ``FOLDER.partial`` becomes `folder`, which may exist if it is empty."""
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


@contextmanager
def open_atomic(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """An open file that becomes `path` once it is written; text is UTF-8."""
    encoding = None if "b" in mode else "utf-8"
    with replacing(path) as neighbour, open(neighbour, mode, encoding=encoding) as file:
        yield file


def write_text(path: str | Path, text: str) -> None:
    """The whole text or the old file."""
    with open_atomic(path) as file:
        file.write(text)


def cache_folder(name: str) -> Path:
    """``$DENSEKD_CACHE/name``, else ``densekd/name`` in the user's cache folder (XDG). It need not exist yet."""
    root = os.environ.get("DENSEKD_CACHE")
    if root:
        return Path(root).expanduser() / name
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "densekd" / name


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: it cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise disk_error(error, path) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no object; copy the file again")
    return content
