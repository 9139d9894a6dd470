"""A zip archive that carries the digest of its own bytes, as the comment that every zip reader passes over.

PyTorch does not compare the checksums of its archives: a flipped bit is loaded as another number.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any

MARK = b"densekd sha256 "
LENGTH = len(MARK) + 64  # of the comment: the mark and a digest in hexadecimal letters
_COUNT = LENGTH.to_bytes(2, "little")  # the archive's last two bytes tell how long its comment is


class Sealing:
    """A file to write an archive to: `seal` ends it with the digest of all that was written.

    Attributes:
        error: what the disk refused, which a writer in C++ may hide behind an error of its own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None
        self._digest = hashlib.sha256()
        self._tail = b""  # the last two bytes so far

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self.file.write(view)
        except OSError as error:
            self.error = error
            raise
        cut = max(0, len(view) - 2)
        tail = self._tail + bytes(view[cut:])
        self._digest.update(self._tail if cut else tail[:-2])
        self._digest.update(view[:cut])
        self._tail = bytes(view[cut:]) if cut else tail[-2:]
        return len(view)

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> None:
        """Put the comment behind the archive."""
        assert self._tail == b"\0\0", "an archive without a comment"
        self._digest.update(_COUNT)
        self.file.seek(-2, 2)
        self.file.write(_COUNT + MARK + self._digest.hexdigest().encode())


def sealed(path: Path) -> bool:
    """True where a file carries its digest and has the bytes that it had; False where it carries none.

    Raises:
        ValueError: the bytes are not those that were written.
    """
    with open(path, "rb") as file:
        length = file.seek(0, 2)
        if length < LENGTH:
            return False
        file.seek(-LENGTH, 2)
        comment = file.read()
        if not comment.startswith(MARK):
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), length - LENGTH
        while part := file.read(min(2**20, left)):
            digest.update(part)
            left -= len(part)
    if digest.hexdigest().encode() != comment[len(MARK) :]:
        raise ValueError("its bytes are not those that were written (their digest differs)")
    return True
