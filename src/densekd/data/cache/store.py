"""Decode once: the samples of any reader as plain bytes in one file (or in memory), read through a memory map.

A set on disk is a folder of its own::

    index          a line for each sample, with a checksum: key, place and form of its record
    data-XXXX.bin  the records: image and target as they lie in memory
    lock           held while one process fills; others wait, and find the work done

A record is served only if its key is what the sample's files and its reader give now (`densekd.data.cache.key`) and its
bytes have the checksum of the index, so that neither an edited file nor a torn write is ever taken for a sample.
Records are written first and listed afterwards: a process that dies at any moment leaves at worst bytes that nobody
knows of.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from densekd.data.base import DenseSet
from densekd.data.cache.cached_set import CachedSet
from densekd.data.cache.fill import GB, Filling
from densekd.data.cache.storage import unusable
from densekd.errors import UserError
from densekd.ops.names import bytes_text


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
        budget_gb: the most that all sets may take together, in 10^9 bytes.
        workers: decoding processes; 0 decodes in this one.
        say: told the estimate, before anything is written.
        progress: called with a set's name, and how many of how many samples are done.
        stopped: asked between samples; once it is true, what is there is returned, and the next call goes on.

    Raises:
        UserError: beyond the budget, or what the disk has free; a folder that cannot be used; targets of another kind
            than the reader says; a reader on disk whose samples are of no files and which has no `sources`; on Windows.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise UserError("keeping decoded samples needs Linux or macOS; leave it out") from None
    fillings = {name: Filling(name, reader, folder) for name, reader in readers.items()}
    known = sum(filling.size for filling in fillings.values())
    lacking, total = (
        sum(len(part) for part in parts)
        for parts in ([filling.missing for filling in fillings.values()], readers.values())
    )
    if lacking:
        wanted = sum(filling.estimate() for filling in fillings.values())
        place = "memory" if folder is None else str(folder)
        say(
            f"cache: {lacking} of {total} images of {' and '.join(fillings)} are to be decoded: "
            f"about {bytes_text(wanted)} in {place}{f', which holds {bytes_text(known)} of them' if known else ''}"
        )
        _check_room(folder, known, wanted, budget_gb)
    result = {}
    for name, filling in fillings.items():
        try:
            result[name] = filling.open(workers, budget_gb, say, progress, stopped)
        except UserError as error:
            error.one_rank = True  # of processes that share a disk one fills
            raise
        # A set that seems small by a few samples may not be: what is written counts.
        budget_gb -= result[name].size / GB
    return result


def _check_room(folder: Path | None, known: int, wanted: int, budget_gb: float) -> None:
    if known + wanted > budget_gb * GB:
        elsewhere = (
            "" if folder is None else f", delete {folder} if it holds what is no longer used"
        )
        raise UserError(
            f"these sets take about {bytes_text(known + wanted)} decoded and `budget_gb` is {budget_gb:g}. "
            f"Raise it{elsewhere}, or leave the cache out"
        )
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise unusable(folder, error) from error
    if wanted > free:
        raise UserError(
            f"{bytes_text(wanted)} are needed and {folder} has {bytes_text(free)} free. "
            "Set `folder` to a larger disk"
        )
