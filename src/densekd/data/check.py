"""Reading files before they are needed: a few before training, all of them for `densekd data check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from densekd.data.base import DenseSet
from densekd.data.workers import closed_at_exit, start_worker
from densekd.errors import DataError
from densekd.ops.names import first_few
from densekd.targets import CheckReport, check_kind, kind_of_set, task_of


def sample_check(reader: DenseSet, count: int = 16, seed: int = 0) -> list[str]:
    """Read `count` samples spread evenly over the set, before training begins.

    Returns:
        Remarks on what is legal but unlikely to be meant; often empty.

    Raises:
        DataError: some of them are bad (the first few and the count), or nothing can be learned from them.
        UserError: targets of another kind than the reader says.
    """
    report = sample_report(reader, count, seed)
    if report.bad:
        reasons = [reason for _, reason in report.bad]
        raise DataError(
            f"{len(report.bad)} of {report.read} samples tried are bad: {first_few(reasons)}. "
            "`densekd data check` reads them all."
        )
    return report.remarks()


def sample_report(reader: DenseSet, count: int = 16, seed: int = 0) -> CheckReport:
    """What `count` samples spread evenly over the set hold; bad ones are listed, never raised."""
    count = min(count, len(reader))
    edges = np.linspace(0, len(reader), count + 1)
    drawn = np.random.default_rng([seed, len(reader)]).uniform(edges[:-1], edges[1:])
    report = empty_report(reader)
    # Distinct: uniform draws of neighbouring strata may round to one index.
    for index in sorted({min(int(place), len(reader) - 1) for place in drawn}):
        report.add(_facts(reader, index))
    return report


def check_all(
    reader: DenseSet, workers: int = 0, progress: Callable[[int], None] | None = None
) -> CheckReport:
    """Read every sample and count; bad files are listed, never raised.

    Depth maps without a known pixel are listed among them: they are legal (`sample_check` only remarks on some), but
    useless.

    Build the reader with ``verify_files=False``, so that missing files are listed too. `progress` is called with the
    number of samples just read.
    """
    report = empty_report(reader)
    loader = DataLoader(
        _Facts(reader), batch_size=None, num_workers=workers, worker_init_fn=start_worker
    )
    for facts in closed_at_exit(facts for facts in loader):
        report.add(facts)
        if progress is not None:
            progress(1)
    report.bad += report.useless()
    return report


def empty_report(reader: DenseSet) -> CheckReport:
    """Nothing read yet."""
    return kind_of_set(reader).report(task_of(reader), len(reader), list(reader.classes))


class _Facts(Dataset):
    def __init__(self, reader: DenseSet) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _facts(self.reader, index)


def _facts(reader: DenseSet, index: int) -> dict[str, Any]:
    """What a report needs of one sample."""
    try:
        sample = reader.read(index)
    except DataError as error:
        return {"name": reader.name(index), "bad": str(error)}
    height, width = sample.image.shape[:2]
    return {
        "name": sample.name,
        "bad": None,
        "size": f"{width}x{height}",
        "range": (int(sample.image.min()), int(sample.image.max())),
        "target": None if sample.target is None else _target_facts(reader, sample.target),
    }


def _target_facts(reader: DenseSet, target: Any) -> dict[str, Any]:
    kind = check_kind(reader, target)
    return kind.facts(target, len(reader.classes), reader.ignore_index)
