"""A file of records of one size, each at a place of its own, that several processes may fill and read at once."""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

import numpy as np

from densekd.errors import UserError


class RecordFile:
    """`count` places of `nbytes` each, behind a table with every record's checksum (0: nothing there yet).

    The file has its full length from the start and takes disk space only as it is filled (where the file system knows
    holes). Data are written before their checksum, and a reader looks at both: a record that a kill or another
    writer left half done counts as absent. Nothing is locked: writers of one place write the same.

    Args:
        path: made where it is missing, with its folder.
        count: how many places.
        nbytes: the size of a record.

    Raises:
        UserError: the file cannot be made or opened; on Windows.
    """

    def __init__(self, path: Path, count: int, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self._first = 4 * count  # where the records begin
        length = self._first + count * nbytes
        if not hasattr(os, "pwrite"):
            raise UserError("a store of the teacher's maps needs Linux or macOS; leave it out")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written by pwrite and read through a map: a full disk is then an error and no signal.
            path.touch()
            self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - as long as this object
            if os.fstat(self._file.fileno()).st_size != length:
                os.ftruncate(self._file.fileno(), length)
        except OSError as error:
            raise UserError(
                f"{path} cannot be used ({error.strerror}); give `folder` another place"
            ) from error
        self._map = mmap.mmap(self._file.fileno(), length, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._sums = self._bytes[: self._first].view("<u4")

    def filled(self) -> int:
        """Records there are."""
        return int(np.count_nonzero(self._sums))

    def allocated(self) -> int:
        """Bytes on disk."""
        return 512 * os.fstat(self._file.fileno()).st_blocks

    def read(self, place: int, into: np.ndarray) -> bool:
        """Copy a record to `into`, (nbytes,) uint8; False where there is none."""
        expected = int(self._sums[place])
        if expected == 0:
            return False
        begin = self._first + place * self.nbytes
        into[:] = self._bytes[begin : begin + self.nbytes]
        return _checksum(into) == expected

    def write(self, place: int, data: np.ndarray) -> None:
        """Store (nbytes,) uint8.

        Raises:
            UserError: the disk is full.
        """
        try:
            self._put(data.tobytes(), self._first + place * self.nbytes)
            self._put(_checksum(data).to_bytes(4, "little"), 4 * place)
        except OSError as error:
            failed = UserError(
                f"{self.path} cannot be written ({error.strerror}); make room, or give `folder` another place, then "
                "resume"
            )
            failed.one_rank = True  # each rank fills places of its own
            raise failed from error

    def _put(self, data: bytes, at: int) -> None:
        while data:
            written = os.pwrite(self._file.fileno(), data, at)
            data, at = data[written:], at + written


def _checksum(data: np.ndarray) -> int:
    return zlib.crc32(data.data) or 1
