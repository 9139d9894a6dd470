"""Decode once: the samples of any reader as plain bytes in one file (or in memory), read through a memory map.

A set on disk is a folder of its own::

    index          one line a sample, each with a checksum: key, place and form of its record
    data-XXXX.bin  the records: image and target as they lie in memory
    lock           held while one process fills; others wait, and find the work done

A record is served only if its key is what the sample's files and its reader give now (`_cache_key`) and its bytes have
the checksum of the index, so that neither an edited file nor a torn write is ever taken for a sample. Records are
written first and listed afterwards: a process that dies at any moment leaves at worst bytes that nobody knows of.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import multiprocessing
import os
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from densekd.data.base import DenseSet, Sample
from densekd.data.cache.key import FORMAT, reader_digest, sample_key, settle, sources_of, stamp
from densekd.data.loader import closed_at_exit, start_worker
from densekd.errors import DataError, UserError
from densekd.ops.files import open_atomic
from densekd.ops.names import bytes_text
from densekd.targets import BoxTarget, DepthTarget

GB = 1e9
_LOOKED_AT = 8  # samples that the estimate is made from
_ALIGNED = 64  # bytes, to which arrays begin


def cached(
    readers: Mapping[str, DenseSet],
    *,
    folder: Path | None,
    budget_gb: float,
    workers: int = 0,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    stopped: Callable[[], object] = lambda: False,
) -> dict[str, CachedSet]:
    """The same sets, decoded now where they are not yet, in memory or on disk.

    What cannot be decoded is left out: `CachedSet.read` asks the reader for it, and raises the reader's own error.

    Args:
        readers: by the name of each: its folder's on disk.
        folder: of all sets; several processes may share it. None keeps them in this process's memory, which loader
            workers share.
        budget_gb: the most they may take together, in 10^9 bytes.
        workers: decoding processes; 0 decodes in this one.
        say: told the estimate, before anything is written.
        progress: called with a set's name, and how many of how many samples are done.
        stopped: asked between samples; once it is true, what is there is returned, and the next call goes on.

    Raises:
        UserError: beyond the budget, or what the disk has free; a folder that cannot be used; a target of another kind
            than ours; a reader on disk whose samples are of no files and which has no `sources`; on Windows.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise UserError("data.cache needs Linux or macOS; leave it out") from None
    stores = {name: _Store(name, reader, folder) for name, reader in readers.items()}
    known = sum(store.size for store in stores.values())
    lacking, total = (
        sum(len(part) for part in parts)
        for parts in ([store.missing for store in stores.values()], readers.values())
    )
    if lacking:
        wanted = sum(store.estimate() for store in stores.values())
        place = "memory" if folder is None else str(folder)
        say(
            f"cache: {lacking} of {total} images of {' and '.join(stores)} are to be decoded: "
            f"about {bytes_text(wanted)} in {place}{f', which holds {bytes_text(known)} of them' if known else ''}"
        )
        _check_room(folder, known, wanted, budget_gb)
    result = {}
    for name, store in stores.items():
        try:
            result[name] = store.open(workers, budget_gb, say, progress, stopped)
        except UserError as error:
            error.one_rank = True  # of processes that share a disk one fills
            raise
        # A set that looks small in a few samples may not be: what is written counts.
        budget_gb -= result[name].size / GB
    return result


def _check_room(folder: Path | None, known: int, wanted: int, budget_gb: float) -> None:
    if known + wanted > budget_gb * GB:
        elsewhere = (
            "" if folder is None else f", delete {folder} if it holds what is no longer used"
        )
        raise UserError(
            f"cache: these sets take about {bytes_text(known + wanted)} decoded and data.cache_gb is {budget_gb:g}. "
            f"Raise it{elsewhere}, or leave data.cache out"
        )
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _unusable(folder, error) from error
    if wanted > free:
        raise UserError(
            f"cache: {bytes_text(wanted)} are needed and {folder} has {bytes_text(free)} free. "
            "Set DENSEKD_CACHE to a larger disk"
        )


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"cache: {folder} cannot be used: {error}. Set DENSEKD_CACHE to another folder"
    )


class CachedSet:
    """A reader that decodes no more: `read` gives views of the memory map, which cannot be written to.

    Everything else (classes, name, paths, task, ...) is the reader's own. Made by `cached`.

    Attributes:
        reader: the set itself.
        size: bytes of the file behind it.
    """

    def __init__(self, reader: DenseSet, file: _File, lines: list[str | None]) -> None:
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
        record = _Record(**json.loads(line))
        if not self._checked[index]:
            with (
                memoryview(self._bytes) as whole,
                whole[record.at : record.at + record.size] as part,
            ):
                sound = zlib.crc32(part) == record.crc
            if not sound:
                return self._mend(index, record)
            self._checked[index] = 1
        return record.sample(self._bytes, self.reader.name(index))

    def _mend(self, index: int, record: _Record) -> Sample:
        """The sample decoded again; written over its record where that comes out as it was."""
        sample = self.reader.read(index)
        content, _ = _packed(sample)
        if (zlib.crc32(content), len(content)) == (record.crc, record.size):
            _write(self._file.number, content, record.at)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_bytes", "_checked")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


@dataclass
class _Record:
    """Where a sample lies in the file, and what its bytes are."""

    at: int
    size: int
    crc: int
    arrays: list[tuple[str, list[int]]]  # dtype and shape of each
    kind: str | None  # of the target: None, "map", "depth" or "boxes"
    extra: Any = None  # intrinsics, or image_id
    key: str = ""

    def sample(self, source: Any, name: str) -> Sample:
        arrays, at = [], self.at
        for form, shape in self.arrays:
            dtype, count = np.dtype(form), int(np.prod(shape))
            arrays.append(np.frombuffer(source, dtype, count, at).reshape(shape))
            at = _aligned(at + count * dtype.itemsize)
        image, *rest = arrays
        if self.kind == "map":
            target: Any = rest[0]
        elif self.kind == "depth":
            target = DepthTarget(rest[0], tuple(self.extra) if self.extra is not None else None)
        elif self.kind == "boxes":
            # A few numbers, which torch wants to own.
            boxes, labels, ignored, areas = (array.copy() for array in rest)
            target = BoxTarget(boxes, labels, ignored, areas, self.extra)
        else:
            target = None
        return Sample(image, target, name)


def _packed(sample: Sample) -> tuple[bytearray, dict[str, Any]]:
    """A sample's bytes, and the fields of its `_Record` that tell their form."""
    target, extra = sample.target, None
    if target is None:
        kind, rest = None, []
    elif isinstance(target, np.ndarray):
        kind, rest = "map", [target]
    elif isinstance(target, DepthTarget):
        kind, rest = "depth", [target.depth]
        extra = target.intrinsics and [float(value) for value in target.intrinsics]
    elif isinstance(target, BoxTarget):
        kind, rest = "boxes", [target.boxes, target.labels, target.ignored, target.areas]
        extra = int(target.image_id)
    else:
        raise UserError(
            f"data.cache: targets of {type(target).__name__} cannot be kept; expected a class map, a BoxTarget or a "
            "DepthTarget. Leave data.cache out"
        )
    arrays = [np.ascontiguousarray(array) for array in (sample.image, *rest)]
    content = bytearray()
    for array in arrays:
        content += bytes(_aligned(len(content)) - len(content))
        content += array.data.cast("B") if array.size else b""
    forms = [(array.dtype.str, list(array.shape)) for array in arrays]
    return content, {"arrays": forms, "kind": kind, "extra": extra}


def _aligned(at: int) -> int:
    return -(-at // _ALIGNED) * _ALIGNED


def _write(number: int, content: bytearray, at: int) -> None:
    with memoryview(content) as view:
        done = 0
        while done < len(view):  # one call writes 2 GiB at most
            done += os.pwrite(number, view[done:], at + done)


class _File:
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


class _Store:
    """One set's records while they are made.

    Attributes:
        missing: indices without a record; looked up anew once the lock is held.
        size: bytes that its file has now.
    """

    def __init__(self, name: str, reader: DenseSet, folder: Path | None) -> None:
        self.name = name
        self.reader = reader
        self.folder = None if folder is None else folder / name
        self.common = "" if folder is None else reader_digest(reader)
        stat = cache(stamp)  # files that samples share are looked at once
        self.keys = [
            "" if folder is None else sample_key(reader, self.common, index, stat)
            for index in range(len(reader))
        ]
        self.lines: list[str | None] = [None] * len(reader)
        self.size = 0
        if self.folder is not None:
            self._look_up(self.folder)

    @property
    def missing(self) -> list[int]:
        return [index for index, line in enumerate(self.lines) if line is None]

    def estimate(self) -> int:
        """Bytes that the missing records will take, from a few of them."""
        missing = self.missing
        shown = (
            np.unique(np.linspace(0, len(missing) - 1, _LOOKED_AT).astype(int)) if missing else []
        )
        sizes = []
        for place in shown:
            with contextlib.suppress(DataError):
                sizes.append(len(_packed(self.reader.read(missing[place]))[0]))
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
        file, fresh = _File(_memory_file(self.name)), []
        if self.folder is None:
            fresh = self._fill(file, None, None, workers, budget_gb, progress, stopped)
        else:
            try:
                with _locked(self.folder, self.name, say, stopped) as lock:
                    if lock is None:  # told to stop while another process fills
                        self.lines = [None] * len(self.lines)
                    else:
                        file, fresh = self._open_disk(
                            self.folder, lock, workers, budget_gb, progress, stopped
                        )
            except OSError as error:
                raise _unusable(self.folder, error) from error
        result = CachedSet(self.reader, file, self.lines)
        result._checked[fresh] = 1  # known to be sound
        return result

    def _open_disk(
        self,
        folder: Path,
        lock: _File,
        workers: int,
        budget_gb: float,
        progress: Callable[[str, int, int], None],
        stopped: Callable[[], object],
    ) -> tuple[_File, list[int]]:
        """The data file, and the indices that were decoded into it now."""
        data = self._look_up(folder) or _start_over(folder)
        file = _File(os.open(folder / data, os.O_RDWR))
        if not self.missing:
            return file, []
        with open(folder / "index", "rb+") as index:
            index.seek(-1, os.SEEK_END)
            if index.read(1) != b"\n":  # a line that a dying process did not finish
                index.write(b"\n")
            return file, self._fill(file, index, lock, workers, budget_gb, progress, stopped)

    def _look_up(self, folder: Path) -> str | None:
        """Find the records there are; the data file's name, or None where all must begin anew."""
        lines: list[str | None] = [None] * len(self.reader)
        self.lines, self.size = lines, 0
        data, known = _read_index(folder / "index")
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
                used += _aligned(found["size"])
        # Records of files that have changed since are no use to anyone; past a half, they are not kept.
        if end > 2 * used:
            return None
        self.lines, self.size = lines, end
        return data

    def _fill(
        self,
        file: _File,
        index: Any,
        lock: _File | None,
        workers: int,
        budget_gb: float,
        progress: Callable[[str, int, int], None],
        stopped: Callable[[], object],
    ) -> list[int]:
        """Decode what is missing; the indices that were."""
        missing, total = self.missing, len(self.lines)
        end = multiprocessing.Value("q", _aligned(self.size))
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
                        index.write(_checked_line(line))
                        index.flush()
                    self.lines[number] = line
                    fresh.append(number)
                progress(self.name, done, total)
                if end.value > budget_gb * GB:
                    raise UserError(
                        f"cache: {self.name} takes more than was estimated: {done} of {total} images fill what "
                        "data.cache_gb leaves. Raise it; on disk, what is decoded stays"
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
        file: _File,
        lock: _File | None,
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
            content, about = _packed(self.reader.read(index))
        except DataError:
            return index, None, None
        except UserError as error:
            return index, None, error
        if key and sample_key(self.reader, self.common, index, stamp) != key:
            return index, None, None  # edited meanwhile
        with self.end.get_lock():
            at = self.end.value
            self.end.value = _aligned(at + len(content))
        try:
            _write(self.file.number, content, at)
        except OSError as error:
            return (
                index,
                None,
                UserError(f"cache: cannot write {bytes_text(len(content))}: {error}"),
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


# --- files --------------------------------------------------------------------------------------------------------


def _memory_file(name: str) -> int:
    """A file in memory that is gone with its last process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"densekd-{name}")  # not bound by the size of /dev/shm
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _read_index(path: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The data file's name and the records by key; lines that are not whole are left out."""
    data, known = None, {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return None, {}
    for number, line in enumerate(lines):
        code, _, text = line.partition(b" ")
        if code != b"%08x" % zlib.crc32(text):
            continue
        found = json.loads(text)
        if number > 0:
            known[found["key"]] = found
        elif found.get("format") == FORMAT:
            data = found["data"]
    return data, known


def _checked_line(text: str) -> bytes:
    line = text.encode()
    return b"%08x %s\n" % (zlib.crc32(line), line)


def _start_over(folder: Path) -> str:
    """An empty data file and its index; those that were go. Who has them open keeps them."""
    name = f"data-{secrets.token_hex(4)}.bin"
    for old in folder.glob("data-*.bin"):
        old.unlink(missing_ok=True)
    (folder / name).touch()
    text = json.dumps({"format": FORMAT, "data": name})
    with open_atomic(folder / "index", "wb") as file:
        file.write(_checked_line(text))
    return name


@contextlib.contextmanager
def _locked(
    folder: Path, name: str, say: Callable[[str], None], stopped: Callable[[], object]
) -> Iterator[_File | None]:
    """Alone with the folder; None: told to stop while waiting for that."""
    import fcntl  # not on Windows

    folder.mkdir(parents=True, exist_ok=True)
    lock = _File(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666))
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
