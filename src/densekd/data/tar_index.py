"""Tar files whose members are read at random: where each sample's files lie, from an index or from the headers.

Nothing is ever unpacked. A member is some bytes of the tar, found by offset, so samples have numbers, and order and
resume are those of every other data set.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from densekd.data.files import inside
from densekd.data.image_files import pixel_limit, require_plain_file
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few

INDEX = "index.json"  # beside the shards
_BLOCK = 512
_OPEN_FILES = 32  # of one process
_MOST_SHARDS = 100_000
_REMOTE = re.compile(r"^(pipe:|[A-Za-z][A-Za-z0-9+.-]+:/)")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

# Of one shard: key -> suffix -> (offset, size).
Samples = dict[str, dict[str, tuple[int, int]]]


class TarMembers:
    """The samples of some shards, in the order of the shards and of their members.

    Args:
        shards: the tar files.
        suffixes: what is wanted of each sample; the rest is not kept.
        found: `samples_of` each shard.

    Attributes:
        places: (samples, suffixes, 2) int64 offset and size; -1 where a sample has no such member.
    """

    def __init__(
        self, shards: Sequence[Path], suffixes: Sequence[str], found: Sequence[Samples]
    ) -> None:
        self.shards = [str(path) for path in shards]
        self.suffixes = list(suffixes)
        # Arrays, not lists of objects, which every worker would copy as it counts references.
        counts = [len(samples) for samples in found]
        self._first = np.cumsum([0, *counts])
        keys = [key.encode("utf-8", "surrogateescape") for samples in found for key in samples]
        self._keys = np.frombuffer(b"".join(keys), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, keys)])
        self.places = np.full((len(keys), len(self.suffixes), 2), -1, dtype=np.int64)
        row = 0
        for samples in found:
            for members in samples.values():
                for column, suffix in enumerate(self.suffixes):
                    if suffix in members:
                        self.places[row, column] = members[suffix]
                row += 1
        self._open: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # open files stay in their process

    def shard(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def name(self, index: int) -> str:
        """The shard's file name and the sample's key."""
        key = bytes(self._keys[self._ends[index] : self._ends[index + 1]])
        return f"{Path(self.shards[self.shard(index)]).name}/{key.decode('utf-8', 'replace')}"

    def has(self, suffix: str) -> np.ndarray:
        """(samples,) bool: which samples have such a member."""
        return self.places[:, self.suffixes.index(suffix), 0] >= 0

    def read(self, index: int, suffix: str) -> bytes | None:
        """The bytes of a sample's member, or None where it has none.

        Raises:
            DataError: the shard is gone, shorter than its index says, or the member is too large to be an image.
        """
        offset, size = (int(v) for v in self.places[index, self.suffixes.index(suffix)])
        if offset < 0:
            return None
        check_size(size, f"{self.name(index)}.{suffix}")
        path = self.shards[self.shard(index)]
        try:
            found = os.pread(self._file(self.shard(index)), size, offset)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        if len(found) != size:
            raise DataError(
                f"{self.name(index)}.{suffix}: {path} ends before it does; the file was cut off or replaced since the "
                "run began"
            )
        return found

    def _file(self, shard: int) -> int:
        if self._process != os.getpid():  # a fork's files are its parent's to close
            self._open, self._process = OrderedDict(), os.getpid()
        if shard not in self._open:
            require_plain_file(self.shards[shard], "a tar file")
            self._open[shard] = os.open(self.shards[shard], os.O_RDONLY)
            if len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]

    def __del__(self) -> None:
        if getattr(self, "_process", None) == os.getpid():
            for file in self._open.values():
                os.close(file)


def check_size(size: int, what: str) -> None:
    """DataError where a member is larger than any image within the limit of pixels can be."""
    limit = pixel_limit()
    # Four channels of 16 bits, stored plainly, and room for their header.
    if limit is not None and size > 8 * limit + 2**20:
        raise DataError(
            f"{what} has {size:,} bytes; expected at most {8 * limit + 2**20:,}, what an image of {limit:,} pixels can "
            "take. Raise the limit by the environment variable DENSEKD_MAX_PIXELS"
        )


def refuse_remote(place: object, setting: str) -> None:
    """UserError for an address: shards are read at random, from disks."""
    if _REMOTE.match(str(place)):
        raise UserError(
            f"`{setting}` is {str(place)!r}, an address; expected a folder on a disk (or a mounted one). Copy the "
            "shards there first"
        )


def find_shards(root: Path, pattern: str) -> list[Path]:
    """The tar files below `root` that a pattern names: ``train-*.tar`` or ``train-{000000..000012}.tar``.

    Raises:
        DataError: none is there, or one of a range is missing.
        UserError: the pattern names too many, or leads out of `root`.
    """
    refuse_remote(pattern, "shards")
    if "*" in pattern or "?" in pattern:
        if ".." in PurePosixPath(pattern).parts or pattern.startswith("/"):
            raise UserError(f"`shards` is {pattern!r}; expected a pattern of files below `root`")
        found = sorted(root.glob(pattern))
        if not found:
            there = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))
            raise DataError(
                f"{root} holds no {pattern}; there is {first_few(there) if there else 'no tar file'}. Check `root`, "
                "the split, or say in `shards` how the files are called"
            )
        return found
    paths = [inside(root, name, "`shards`", None) for name in _expanded(pattern)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} shards do not exist: {first_few(missing)}")
    return paths


def _expanded(pattern: str) -> Iterator[str]:
    """``a-{00..02}.tar`` -> a-00.tar, a-01.tar, a-02.tar."""
    parts = _RANGE.split(pattern)  # text, low, high, text, low, high, ..., text
    ranges = [(parts[i], parts[i + 1]) for i in range(1, len(parts), 3)]
    spans = [range(int(low), int(high) + 1) for low, high in ranges]
    count = int(np.prod([float(len(span)) for span in spans]))
    if not 0 < count <= _MOST_SHARDS:
        raise UserError(
            f"`shards` {pattern!r} names {count:,} files; expected 1 to {_MOST_SHARDS:,}, as train-{{0..9}}.tar does"
        )
    for numbers in product(*spans):
        name = parts[0]
        for number, (low, _), text in zip(numbers, ranges, parts[3::3], strict=True):
            name += f"{number:0{len(low)}d}{text}"
        yield name


def samples_of(path: Path, index: Mapping[str, Any] | None) -> Samples:
    """Where the files of a shard's samples lie: from its entry in an index, or else from the tar's headers.

    Raises:
        DataError: the tar is damaged, cut off, compressed or another than the index's, or holds what no shard may
            hold: links, devices, names that lead outside, a file twice.
    """
    require_plain_file(path, "a tar file")
    size = path.stat().st_size
    if index is None:
        return _scanned(path, size)
    if index.get("filesize") != size:
        raise DataError(
            f"{path} has {size:,} bytes and {INDEX} says {index.get('filesize')}; it was changed since the index was "
            f"written. Write the shards again, or remove {INDEX}: then the tars' own headers are read"
        )
    try:
        samples = {
            str(key): {str(suffix): (int(at), int(long)) for suffix, (at, long) in members.items()}
            for key, members in index["samples"]
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _bad_index(path.parent, f"the samples of {path.name} ({error!r})") from None
    spans = [span for members in samples.values() for span in members.values()]
    if any(at < 0 or long < 0 or at + long > size for at, long in spans):
        raise _bad_index(path.parent, f"{path.name}: a place beyond the end of the file")
    return samples


def read_index(root: Path) -> dict[str, Any] | None:
    """The index beside the shards, checked in form; None where there is none."""
    path = root / INDEX
    if not path.exists():
        return None
    require_plain_file(path, "an index of shards")
    try:
        content = json.loads(path.read_bytes())
        entries = {str(entry["url"]): entry for entry in content["shardlist"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad_index(root, repr(error)) from None
    content["by_url"] = {url: entry for url, entry in entries.items() if "samples" in entry}
    return content


def _bad_index(root: Path, why: str) -> DataError:
    return DataError(
        f"{root / INDEX} is no index of shards: {why}. Write it again by `densekd data shard`, or remove it: then the "
        "tars' own headers are read"
    )


def _scanned(path: Path, size: int) -> Samples:
    samples: Samples = {}
    last, end = None, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isdir():
                    continue
                _check_member(path, member, size)
                key, suffix = split_name(member.name)
                if not suffix:
                    continue
                if key != last and key in samples:
                    raise DataError(
                        f"{path}: the files of sample {key!r} do not stand together; expected all files of a sample "
                        "one after the other, as webdataset wants them"
                    )
                members = samples.setdefault(key, {})
                if suffix in members:
                    raise DataError(f"{path} holds {member.name!r} twice; expected each file once")
                members[suffix] = (member.offset_data, member.size)
                last = key
        with path.open("rb") as file:
            file.seek(end)
            ended = file.read(_BLOCK) == bytes(_BLOCK)
    except DataError:
        raise
    # A header's numbers and texts are anything in a damaged file.
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(
            f"{path} is no plain tar file, or is damaged: {error}. Compressed tars cannot be read at random: unpack "
            "their compression"
        ) from None
    if not ended:
        raise DataError(f"{path} is cut off: the mark at a tar's end is missing. Copy it again")
    return samples


def _check_member(path: Path, member: tarfile.TarInfo, size: int) -> None:
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "a device, a pipe or a sparse file"
        raise DataError(
            f"{path} holds {member.name[:200]!r}, which is {kind}; expected plain files"
        )
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        raise DataError(
            f"{path} holds {member.name[:200]!r}, a name that leads outside; expected KEY.SUFFIX"
        )
    if member.size < 0 or member.offset_data + member.size > size:
        raise DataError(f"{path} is cut off within {member.name[:200]!r}. Copy it again")


def split_name(name: str) -> tuple[str, str]:
    """A member's name -> key and suffix, at the first dot of its last part, as webdataset does."""
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    if not dot or not stem or stem.startswith("__"):
        return name, ""
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()
