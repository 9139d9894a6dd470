"""Files that appear whole or not at all, and where what can be made again is kept."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a neighbour of `path` to write to; once the body ends, it is flushed to disk and takes `path`'s name.

    A kill at any moment leaves the old file or the new one, never half of one. Several processes may write the same
    path: each has a neighbour of its own, and the last one holds.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield neighbour
        with open(neighbour, "rb") as file:
            os.fsync(file.fileno())
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


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
