"""One set's records while they are made: what is there, what is missing, and the processes that decode it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from densekd.data.base import DenseSet, sources_of
from densekd.data.cache.cached_set import CachedSet
from densekd.data.cache.key import reader_digest, sample_key, settle, stamp
from densekd.data.cache.record import aligned, packed
from densekd.data.cache.storage import (
    SharedFile,
    checked_line,
    locked,
    memory_file,
    read_index,
    start_over,
    unusable,
    write,
)
from densekd.data.workers import closed_at_exit, start_worker
from densekd.errors import DataError, UserError
from densekd.ops.names import bytes_text

GB = 1e9
_ESTIMATED_FROM = 8  # samples that the estimate is made from


class Filling:
    """One set's records while they are made.

    Attributes:
        missing: indices without a record; found anew once the lock is held.
        size: bytes that its file has now.
    """

    def __init__(self, name: str, reader: DenseSet, folder: Path | None) -> None:
        self.name = name
        self.reader = reader
        self.folder = None if folder is None else folder / name
        self.common = "" if folder is None else reader_digest(reader)
        stat = cache(stamp)  # so that files that samples share are asked for once
        self.keys = [
            "" if folder is None else sample_key(reader, self.common, index, stat)
            for index in range(len(reader))
        ]
        self.lines: list[str | None] = [None] * len(reader)
        self.size = 0
        if self.folder is not None:
            self._find_records(self.folder)

    @property
    def missing(self) -> list[int]:
        return [index for index, line in enumerate(self.lines) if line is None]

    def estimate(self) -> int:
        """Bytes that the missing records will take, from a few of them."""
        missing = self.missing
        shown = (
            np.unique(np.linspace(0, len(missing) - 1, _ESTIMATED_FROM).astype(int))
            if missing
            else []
        )
        sizes = []
        for place in shown:
            with contextlib.suppress(DataError):
                sizes.append(len(packed(self.reader, self.reader.read(missing[place]))[0]))
        return round(len(missing) * sum(sizes) / max(1, len(sizes)))

    def open(
        self,
        workers: int,
        budget_gb: float,
        say: Callable[[str], None],
        progress: Callable[[str, int, int], None],
        stopped: Callable[[], object],
    ) -> CachedSet:
        """Fill what is missing, and map the file."""
        file, fresh = SharedFile(memory_file(self.name)), []
        if self.folder is None:
            fresh = self._fill(file, None, None, workers, budget_gb, progress, stopped)
        else:
            try:
                with locked(self.folder, self.name, say, stopped) as lock:
                    if lock is None:  # told to stop while another process fills
                        self.lines = [None] * len(self.lines)
                    else:
                        file, fresh = self._open_disk(
                            self.folder, lock, workers, budget_gb, progress, stopped
                        )
            except OSError as error:
                raise unusable(self.folder, error) from error
        result = CachedSet(self.reader, file, self.lines)
        result._checked[fresh] = 1  # known to be sound
        return result

    def _open_disk(
        self,
        folder: Path,
        lock: SharedFile,
        workers: int,
        budget_gb: float,
        progress: Callable[[str, int, int], None],
        stopped: Callable[[], object],
    ) -> tuple[SharedFile, list[int]]:
        """The data file, and the indices that were decoded into it now."""
        data = self._find_records(folder) or start_over(folder)
        file = SharedFile(os.open(folder / data, os.O_RDWR))
        if not self.missing:
            return file, []
        with open(folder / "index", "rb+") as index:
            index.seek(-1, os.SEEK_END)
            if index.read(1) != b"\n":  # a line that a dying process did not finish
                index.write(b"\n")
            return file, self._fill(file, index, lock, workers, budget_gb, progress, stopped)

    def _find_records(self, folder: Path) -> str | None:
        """Find the records there are; the data file's name, or None where all must begin anew."""
        lines: list[str | None] = [None] * len(self.reader)
        self.lines, self.size = lines, 0
        data, known = read_index(folder / "index")
        try:
            length = (folder / data).stat().st_size if data is not None else 0
        except OSError:
            return None
        end = max((found["at"] + found["size"] for found in known.values()), default=0)
        lines, used = lines.copy(), 0
        for index, key in enumerate(self.keys):
            found = known.get(key)
            if found is not None and found["at"] + found["size"] <= length:
                lines[index] = json.dumps(found)
                used += aligned(found["size"])
        # Records of files that have changed since are no use to anyone; past a half, they are not kept.
        if end > 2 * used:
            return None
        self.lines, self.size = lines, end
        return data

    def _fill(
        self,
        file: SharedFile,
        index: Any,
        lock: SharedFile | None,
        workers: int,
        budget_gb: float,
        progress: Callable[[str, int, int], None],
        stopped: Callable[[], object],
    ) -> list[int]:
        """Decode what is missing; the indices that were."""
        missing, total = self.missing, len(self.lines)
        end = multiprocessing.Value("q", aligned(self.size))
        workers = min(workers, len(missing))
        loader = DataLoader(
            _Decoder(self.reader, self.common, self.keys, file, lock, end),
            sampler=missing,
            batch_size=None,
            num_workers=workers if workers > 1 else 0,
            worker_init_fn=start_worker,
            collate_fn=_as_it_is,
            in_order=False,
            # A private generator: making an iterator must not advance the global one.
            generator=torch.Generator(),
        )
        fresh = []
        progress(self.name, total - len(missing), total)
        with contextlib.closing(closed_at_exit(_stream(loader))) as stream:
            for done, (number, line, error) in enumerate(stream, total - len(missing) + 1):
                if error is not None:
                    raise error
                if line is not None:
                    if index is not None:
                        index.write(checked_line(line))
                        index.flush()
                    self.lines[number] = line
                    fresh.append(number)
                progress(self.name, done, total)
                if end.value > budget_gb * GB:
                    raise UserError(
                        f"{self.name} takes more than was estimated: {done} of {total} images fill what "
                        "`budget_gb` leaves. Raise it; on disk, what is decoded stays"
                    )
                if stopped():
                    break
        return fresh


class _Decoder(Dataset):
    """Decodes one sample and writes its record; a worker's whole work."""

    def __init__(
        self,
        reader: DenseSet,
        common: str,
        keys: list[str],
        file: SharedFile,
        lock: SharedFile | None,
        end: Any,
    ) -> None:
        self.reader = reader
        self.common = common
        self.keys = keys
        self.file = file
        # A worker may outlive a killed parent by some seconds, still writing: what it holds keeps others out.
        self.lock = lock
        self.end = end

    def __getitem__(self, index: int) -> tuple[int, str | None, UserError | None]:
        """Index, line for the index or None where the sample cannot be decoded, error that ends all."""
        key = self.keys[index]
        try:
            if key:
                settle(sources_of(self.reader, index))
            content, about = packed(self.reader, self.reader.read(index))
        except DataError:
            return index, None, None
        except UserError as error:
            return index, None, error
        if key and sample_key(self.reader, self.common, index, stamp) != key:
            return index, None, None  # edited meanwhile
        with self.end.get_lock():
            at = self.end.value
            self.end.value = aligned(at + len(content))
        try:
            write(self.file.number, content, at)
        except OSError as error:
            return (
                index,
                None,
                UserError(f"cannot write {bytes_text(len(content))}: {error}"),
            )
        crc = zlib.crc32(content)
        found = {"at": at, "size": len(content), "crc": crc, **about, "key": key}
        return index, json.dumps(found), None


def _as_it_is(item: Any) -> Any:
    return item


def _stream(loader: DataLoader) -> Generator[Any, None, None]:
    try:
        yield from loader
    except BaseException as error:  # Ctrl-C
        # The traceback would hold the workers' end of the line until the interpreter ends, and that waits for them.
        raise error.with_traceback(None) from None
