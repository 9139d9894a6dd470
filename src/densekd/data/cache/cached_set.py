"""A data set that is read from its records through a memory map."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from typing import Any

import numpy as np

from densekd.data.base import DenseSet, Sample
from densekd.data.cache.record import Record, packed
from densekd.data.cache.storage import SharedFile, write
from densekd.targets import kind_of_set


class CachedSet:
    """A reader that decodes no more: `read` gives views of the memory map, which cannot be written to.

    Everything else (classes, name, paths, task, ...) is the reader's own. Made by `cached`.

    Attributes:
        reader: the set itself.
        size: bytes of the file behind it.
    """

    def __init__(self, reader: DenseSet, file: SharedFile, lines: list[str | None]) -> None:
        self.reader = reader
        self._file = file
        self._lines = lines  # JSON: many small objects would be copied into every worker
        self._open()

    def _open(self) -> None:
        self.size = os.fstat(self._file.number).st_size
        # Mapping a file twice costs nothing: all processes see the same pages.
        self._bytes = (
            mmap.mmap(self._file.number, self.size, prot=mmap.PROT_READ) if self.size else b""
        )
        # Shared by forked workers: each record's checksum is compared once.
        self._checked = np.frombuffer(mmap.mmap(-1, max(1, len(self._lines))), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.reader)

    def __getattr__(self, name: str) -> Any:
        if name == "reader":  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.reader, name)

    def read(self, index: int) -> Sample:
        """As the reader's, without decoding; arrays are read-only."""
        line = self._lines[index]
        if line is None:
            return self.reader.read(index)
        record = Record(**json.loads(line))
        if not self._checked[index]:
            with (
                memoryview(self._bytes) as whole,
                whole[record.at : record.at + record.size] as part,
            ):
                sound = zlib.crc32(part) == record.crc
            if not sound:
                return self._mend(index, record)
            self._checked[index] = 1
        try:
            return record.sample(self._bytes, self.reader.name(index), kind_of_set(self.reader))
        except (ValueError, TypeError, LookupError, AttributeError):
            return self.reader.read(index)  # its checksum is right and it is no target of this kind

    def _mend(self, index: int, record: Record) -> Sample:
        """The sample decoded again; written over its record where that comes out as it was."""
        sample = self.reader.read(index)
        content, _ = packed(self.reader, sample)
        if (zlib.crc32(content), len(content)) == (record.crc, record.size):
            write(self._file.number, content, record.at)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_bytes", "_checked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
