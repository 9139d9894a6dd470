"""The files behind a set of records: the data file that processes share, its index, and the lock of the folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from densekd.data.cache.key import FORMAT
from densekd.data.cache.record import is_record
from densekd.errors import UserError
from densekd.ops.files import open_atomic

DATA_FILE = re.compile(r"data-[0-9a-f]{8}\.bin")


class SharedFile:
    """An open file that goes with its object to other processes, forked or not."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        from multiprocessing.reduction import DupFd  # not on Windows

        return {"sent": DupFd(self.number)}

    def __setstate__(self, state: Any) -> None:
        self.number = state["sent"].detach()

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.number)


def write(number: int, content: bytearray, at: int) -> None:
    with memoryview(content) as view:
        done = 0
        while done < len(view):  # one call writes 2 GiB at most
            done += os.pwrite(number, view[done:], at + done)


def memory_file(name: str) -> int:
    """A file in memory that is gone with its last process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"densekd-{name}")  # not bound by the size of /dev/shm
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def read_index(path: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The data file's name and the records by key; lines that are not whole, or no records of ours, are left out."""
    data, known = None, {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return None, {}
    for number, line in enumerate(lines):
        code, _, text = line.partition(b" ")
        if code != b"%08x" % zlib.crc32(text):
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(found, dict):
            continue
        if number > 0 and is_record(found):
            known[found["key"]] = found
        elif number == 0 and found.get("format") == FORMAT:
            name = found.get("data")
            # A name alone: the file lies in this very folder.
            data = name if isinstance(name, str) and DATA_FILE.fullmatch(name) else None
    return data, known


def checked_line(text: str) -> bytes:
    line = text.encode()
    return b"%08x %s\n" % (zlib.crc32(line), line)


def start_over(folder: Path) -> str:
    """An empty data file and its index; those that were go. Who has them open keeps them."""
    name = f"data-{secrets.token_hex(4)}.bin"
    for old in folder.glob("data-*.bin"):
        old.unlink(missing_ok=True)
    (folder / name).touch()
    text = json.dumps({"format": FORMAT, "data": name})
    with open_atomic(folder / "index", "wb") as file:
        file.write(checked_line(text))
    return name


@contextlib.contextmanager
def locked(
    folder: Path, name: str, say: Callable[[str], None], stopped: Callable[[], object]
) -> Iterator[SharedFile | None]:
    """Alone with the folder; None: told to stop while waiting for that."""
    import fcntl  # not on Windows

    folder.mkdir(parents=True, exist_ok=True)
    lock = SharedFile(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666))
    told = False
    while True:
        try:
            fcntl.flock(lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if stopped():
                yield None
                return
        if not told:
            say(f"cache: another process is filling {name}; waiting for it")
        told = True
        time.sleep(0.2)
    try:
        yield lock
    finally:
        fcntl.flock(lock.number, fcntl.LOCK_UN)


def unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder} cannot be used: {error}. Set `folder` to another folder")
