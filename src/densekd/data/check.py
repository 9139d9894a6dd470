"""Reading files before they are needed: a few before training, all of them for `densekd data check`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from densekd.data.base import SegmentationSet, first_few
from densekd.data.loader import closed_at_exit, start_worker
from densekd.errors import DataError


def sample_check(reader: SegmentationSet, count: int = 16, seed: int = 0) -> list[str]:
    """Read `count` samples spread evenly over the set, before training begins.

    Returns:
        Remarks on what is legal but unlikely to be meant; often empty.

    Raises:
        DataError: some of them are bad (the first few and the count), or no pixel of theirs has a class.
    """
    count = min(count, len(reader))
    edges = np.linspace(0, len(reader), count + 1)
    drawn = np.random.default_rng([seed, len(reader)]).uniform(edges[:-1], edges[1:])
    report = CheckReport.empty(reader)
    # Distinct: uniform draws of neighbouring strata may round to one index.
    for index in sorted({min(int(place), len(reader) - 1) for place in drawn}):
        report.add(_facts(reader, index))
    if report.bad:
        reasons = [reason for _, reason in report.bad]
        raise DataError(
            f"{len(report.bad)} of {report.read} samples tried are bad: {first_few(reasons)}. "
            "`densekd data check` reads them all."
        )
    if report.labelled and not sum(report.pixels):
        raise DataError(
            f"all pixels of {report.labelled} samples tried are ignored: nothing can be learned from "
            "them. Check the class list and the label files' form."
        )
    seen = [name for name, images in zip(report.classes, report.images, strict=True) if images]
    if report.labelled > 1 and len(seen) == 1 and len(report.classes) > 1:
        ignored = f", {report.ignored_fraction:.0%} of the pixels are ignored"
        return [
            f"only the class {seen[0]!r} occurs in {report.labelled} samples tried{ignored}: "
            "are the label values those of the class list?"
        ]
    return []


def check_all(reader: SegmentationSet, workers: int = 0) -> CheckReport:
    """Read every sample and count; bad files are listed, never raised.

    Build the reader with ``verify_files=False``, so that missing files are listed too.
    """
    report = CheckReport.empty(reader)
    loader = DataLoader(
        _Facts(reader), batch_size=None, num_workers=workers, worker_init_fn=start_worker
    )
    for facts in closed_at_exit(facts for facts in loader):
        report.add(facts)
    return report


@dataclass
class CheckReport:
    """What `check_all` found.

    Attributes:
        samples: in the set. read: of them tried so far.
        labelled, unlabelled: readable samples with and without a label.
        classes: names. pixels, images: per class, labelled pixels, and images it occurs in.
        ignored: pixels with ignore_index, of `labelled` samples.
        sizes: "480x360" (width x height) -> images.
        image_range, label_range: smallest and largest value (labels as class indices), None where unseen.
        bad: (name, reason) of each unreadable or ill-fitting pair.
    """

    samples: int
    classes: list[str]
    pixels: list[int]
    images: list[int]
    read: int = 0
    labelled: int = 0
    unlabelled: int = 0
    ignored: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    image_range: tuple[int, int] | None = None
    label_range: tuple[int, int] | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def empty(cls, reader: SegmentationSet) -> CheckReport:
        zeros = [0] * reader.num_classes
        return cls(len(reader), list(reader.classes), pixels=list(zeros), images=list(zeros))

    @property
    def ignored_fraction(self) -> float:
        total = self.ignored + sum(self.pixels)
        return self.ignored / total if total else 0.0

    @property
    def absent(self) -> list[str]:
        """Classes that never occur."""
        return [name for name, images in zip(self.classes, self.images, strict=True) if not images]

    def add(self, facts: dict[str, Any]) -> None:
        """Count one sample's facts, as `_facts` gives them."""
        self.read += 1
        if facts["bad"] is not None:
            self.bad.append((facts["name"], facts["bad"]))
            return
        self.sizes[facts["size"]] = self.sizes.get(facts["size"], 0) + 1
        self.image_range = _joined(self.image_range, facts["range"])
        counts = facts["counts"]
        if counts is None:
            self.unlabelled += 1
            return
        self.labelled += 1
        self.ignored += facts["ignored"]
        self.pixels = [a + int(b) for a, b in zip(self.pixels, counts, strict=True)]
        self.images = [a + int(b > 0) for a, b in zip(self.images, counts, strict=True)]
        present = np.flatnonzero(counts)
        if len(present):
            self.label_range = _joined(self.label_range, (int(present[0]), int(present[-1])))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "ignored_fraction": self.ignored_fraction,
            "absent": self.absent,
        }

    def to_text(self) -> str:
        """A few lines and a table, for a terminal."""
        sizes = sorted(self.sizes.items(), key=lambda pair: -pair[1])
        shown = ", ".join(f"{size}: {n}" for size, n in sizes[:5])
        lines = [
            f"samples      {self.samples} ({self.labelled} labelled, {self.unlabelled} without label, "
            f"{len(self.bad)} bad)",
            f"sizes        {shown}{f', and {len(sizes) - 5} more' if len(sizes) > 5 else ''}",
            f"image values {_range_text(self.image_range)}",
            f"label values {_range_text(self.label_range)} of 0-{len(self.classes) - 1}; "
            f"{self.ignored_fraction:.2%} of the pixels ignored",
        ]
        total = max(1, sum(self.pixels))
        width = max(len(name) for name in self.classes)
        lines.append(f"\n{'class':<{width}}  {'pixels':>14}  {'share':>8}  {'images':>7}")
        for name, pixels, images in zip(self.classes, self.pixels, self.images, strict=True):
            lines.append(f"{name:<{width}}  {pixels:>14,}  {pixels / total:>8.3%}  {images:>7}")
        if self.absent:
            lines.append(f"\nnever occur: {', '.join(self.absent)}")
        if self.bad:
            lines.append("\nbad:")
            lines += [f"  {name}: {reason}" for name, reason in self.bad]
        return "\n".join(lines)


class _Facts(Dataset):
    def __init__(self, reader: SegmentationSet) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _facts(self.reader, index)


def _facts(reader: SegmentationSet, index: int) -> dict[str, Any]:
    """What a report needs of one sample."""
    try:
        sample = reader.read(index)
    except DataError as error:
        return {"name": reader.name(index), "bad": str(error)}
    height, width = sample.image.shape[:2]
    facts: dict[str, Any] = {
        "name": sample.name,
        "bad": None,
        "size": f"{width}x{height}",
        "range": (int(sample.image.min()), int(sample.image.max())),
        "counts": None,
    }
    if sample.target is not None:
        labels = sample.target[sample.target != reader.ignore_index]
        facts["counts"] = np.bincount(labels.ravel(), minlength=reader.num_classes)
        facts["ignored"] = int(sample.target.size - labels.size)
    return facts


def _joined(a: tuple[int, int] | None, b: tuple[int, int]) -> tuple[int, int]:
    return b if a is None else (min(a[0], b[0]), max(a[1], b[1]))


def _range_text(values: tuple[int, int] | None) -> str:
    return "none" if values is None else f"{values[0]}-{values[1]}"
