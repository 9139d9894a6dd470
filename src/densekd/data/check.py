"""Reading files before they are needed: a few before training, all of them for `densekd data check`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from densekd.data.base import DenseSet, Sample, task_of
from densekd.data.loader import closed_at_exit, start_worker
from densekd.errors import DataError
from densekd.ops.names import first_few

# Median depths of rooms and streets lie between these, in metres; those of a wrong unit hardly ever.
PLAUSIBLE_DEPTH = (0.2, 200.0)


def sample_check(reader: DenseSet, count: int = 16, seed: int = 0) -> list[str]:
    """Read `count` samples spread evenly over the set, before training begins.

    Returns:
        Remarks on what is legal but unlikely to be meant; often empty.

    Raises:
        DataError: some of them are bad (the first few and the count), or no pixel of theirs has a class.
    """
    count = min(count, len(reader))
    edges = np.linspace(0, len(reader), count + 1)
    drawn = np.random.default_rng([seed, len(reader)]).uniform(edges[:-1], edges[1:])
    report = empty_report(reader)
    # Distinct: uniform draws of neighbouring strata may round to one index.
    for index in sorted({min(int(place), len(reader) - 1) for place in drawn}):
        report.add(_facts(reader, index))
    if report.bad:
        reasons = [reason for _, reason in report.bad]
        raise DataError(
            f"{len(report.bad)} of {report.read} samples tried are bad: {first_few(reasons)}. "
            "`densekd data check` reads them all."
        )
    return report.remarks()


def check_all(
    reader: DenseSet, workers: int = 0, progress: Callable[[int], None] | None = None
) -> CheckReport:
    """Read every sample and count; bad files are listed, never raised.

    Depth maps without a known pixel are listed among them: legal (`sample_check` only remarks on some), but useless.

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


@dataclass
class CheckReport:
    """What `check_all` found, of any task; `LabelReport`, `BoxReport` and `DepthReport` know their targets.

    Attributes:
        task: ``"segmentation"``, ``"detection"`` or ``"depth"``.
        samples: in the set. read: of them tried so far.
        classes: names; none for depth.
        labelled, unlabelled: readable samples with and without a label.
        sizes: "480x360" (width x height) -> images.
        image_range: smallest and largest value, None where unseen.
        bad: (name, reason) of each unreadable or ill-fitting pair; of a full check also the `useless` ones.
    """

    task: str
    samples: int
    classes: list[str]
    read: int = 0
    labelled: int = 0
    unlabelled: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    image_range: tuple[int, int] | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)

    def add(self, facts: dict[str, Any]) -> None:
        """Count one sample's facts, as `_facts` gives them."""
        self.read += 1
        if facts["bad"] is not None:
            self.bad.append((facts["name"], facts["bad"]))
            return
        self.sizes[facts["size"]] = self.sizes.get(facts["size"], 0) + 1
        self.image_range = _joined(self.image_range, facts["range"])
        if facts["target"] is None:
            self.unlabelled += 1
            return
        self.labelled += 1
        self.add_target(facts["name"], facts["target"])

    def add_target(self, name: str, facts: dict[str, Any]) -> None:
        """Count the facts of the target of the sample `name`, as `_target_facts` gives them."""
        raise NotImplementedError

    def useless(self) -> list[tuple[str, str]]:
        """(name, reason) of labelled samples that neither teach nor score anything."""
        return []

    def remarks(self) -> list[str]:
        """On what is legal but unlikely to be meant.

        Raises:
            DataError: nothing can be learned from what was read.
        """
        raise NotImplementedError

    def target_lines(self) -> list[str]:
        """The part of `to_text` on targets."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """A few lines and a table, for a terminal."""
        sizes = sorted(self.sizes.items(), key=lambda pair: -pair[1])
        shown = ", ".join(f"{size}: {n}" for size, n in sizes[:5])
        lines = [
            f"samples      {self.samples} ({self.labelled} labelled, {self.unlabelled} without label, "
            f"{len(self.bad)} bad)",
            f"sizes        {shown}{f', and {len(sizes) - 5} more' if len(sizes) > 5 else ''}",
            f"image values {_range_text(self.image_range)}",
            *self.target_lines(),
        ]
        if self.bad:
            lines.append("\nbad:")
            lines += [f"  {name}: {reason}" for name, reason in self.bad]
        return "\n".join(lines)


@dataclass
class LabelReport(CheckReport):
    """Of class maps.

    Attributes:
        pixels, images: per class, labelled pixels, and images it occurs in.
        ignored: pixels with ignore_index, of `labelled` samples.
        label_range: smallest and largest class index, None where unseen.
    """

    pixels: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    ignored: int = 0
    label_range: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.pixels = self.pixels or [0] * len(self.classes)
        self.images = self.images or [0] * len(self.classes)

    @property
    def ignored_fraction(self) -> float:
        total = self.ignored + sum(self.pixels)
        return self.ignored / total if total else 0.0

    @property
    def absent(self) -> list[str]:
        """Classes that never occur."""
        return _absent(self.classes, self.images)

    def add_target(self, name: str, facts: dict[str, Any]) -> None:
        counts = facts["counts"]
        self.ignored += facts["ignored"]
        self.pixels = [a + int(b) for a, b in zip(self.pixels, counts, strict=True)]
        self.images = [a + int(b > 0) for a, b in zip(self.images, counts, strict=True)]
        present = np.flatnonzero(counts)
        if len(present):
            self.label_range = _joined(self.label_range, (int(present[0]), int(present[-1])))

    def remarks(self) -> list[str]:
        if self.labelled and not sum(self.pixels):
            raise DataError(
                f"all pixels of {self.labelled} samples tried are ignored: nothing can be learned from "
                "them. Check the class list and the label files' form."
            )
        seen = [name for name, images in zip(self.classes, self.images, strict=True) if images]
        if self.labelled > 1 and len(seen) == 1 and len(self.classes) > 1:
            ignored = f", {self.ignored_fraction:.0%} of the pixels are ignored"
            return [
                f"only the class {seen[0]!r} occurs in {self.labelled} samples tried{ignored}: "
                "are the label values those of the class list?"
            ]
        return []

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "ignored_fraction": self.ignored_fraction,
            "absent": self.absent,
        }

    def target_lines(self) -> list[str]:
        return [
            f"label values {_range_text(self.label_range)} of 0-{len(self.classes) - 1}; "
            f"{self.ignored_fraction:.2%} of the pixels ignored",
            *_table(self.classes, "pixels", self.pixels, self.images),
        ]


@dataclass
class BoxReport(CheckReport):
    """Of boxes.

    Attributes:
        objects, images: per class, objects that count, and images it occurs in.
        ignored: crowds and difficult objects, beside those.
        empty: images without an object that counts.
        sides: the square root of each counted box's area, in pixels.
    """

    objects: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    ignored: int = 0
    empty: int = 0
    sides: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objects = self.objects or [0] * len(self.classes)
        self.images = self.images or [0] * len(self.classes)

    @property
    def side_range(self) -> tuple[float, float, float] | None:
        """Smallest, median and largest of `sides`."""
        if not self.sides:
            return None
        return min(self.sides), float(np.median(self.sides)), max(self.sides)

    def add_target(self, name: str, facts: dict[str, Any]) -> None:
        counts = facts["counts"]
        self.ignored += facts["ignored"]
        self.empty += not facts["sides"]
        self.sides += facts["sides"]
        self.objects = [a + int(b) for a, b in zip(self.objects, counts, strict=True)]
        self.images = [a + int(b > 0) for a, b in zip(self.images, counts, strict=True)]

    def remarks(self) -> list[str]:
        if self.labelled > 1 and not self.sides:
            return [
                f"none of {self.labelled} samples tried has an object ({self.ignored} ignored ones): are these the "
                "annotations of these images?"
            ]
        return []

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        del content["sides"]
        absent = _absent(self.classes, self.images)
        return {**content, "side_range": self.side_range, "absent": absent}

    def target_lines(self) -> list[str]:
        sides = "none"
        if self.side_range is not None:
            sides = "{:.1f} smallest, {:.1f} median, {:.1f} largest".format(*self.side_range)
        return [
            f"objects      {sum(self.objects)} and {self.ignored} ignored; {self.empty} images without",
            f"box sides    {sides} (square root of the area, pixels)",
            *_table(self.classes, "objects", self.objects, self.images),
        ]


@dataclass
class DepthReport(CheckReport):
    """Of depth maps.

    Attributes:
        valid, pixels: with known depth, and all, of `labelled` samples.
        depth_range: nearest and farthest, in metres.
        medians: of each map's known depth, in metres.
        cameras: maps that come with intrinsics.
        empty: names of maps without a known pixel.
    """

    valid: int = 0
    pixels: int = 0
    depth_range: tuple[float, float] | None = None
    medians: list[float] = field(default_factory=list)
    cameras: int = 0
    empty: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Of the maps' medians."""
        return float(np.median(self.medians)) if self.medians else None

    def add_target(self, name: str, facts: dict[str, Any]) -> None:
        self.valid += facts["valid"]
        self.pixels += facts["pixels"]
        self.cameras += facts["camera"]
        if facts["known"]:
            nearest, median, farthest = facts["known"]
            self.medians.append(median)
            self.depth_range = _joined(self.depth_range, (nearest, farthest))
        else:
            self.empty.append(name)

    def useless(self) -> list[tuple[str, str]]:
        return [(name, "depth is 0 (unknown) at every pixel") for name in self.empty]

    def remarks(self) -> list[str]:
        if self.labelled and not self.valid:
            raise DataError(
                f"no pixel of {self.labelled} samples tried has a depth: nothing can be learned from them"
            )
        remarks = []
        if self.empty:
            remarks.append(
                f"depth is 0 (unknown) at every pixel of {len(self.empty)} of {self.labelled} samples tried: "
                f"{first_few(self.empty)}. They teach nothing and are not scored; `densekd data check` lists them all."
            )
        low, high = PLAUSIBLE_DEPTH
        if self.median is not None and not low <= self.median <= high:
            remarks.append(
                f"the median depth of {len(self.medians)} samples tried is {self.median:g} m, outside "
                f"{low:g}-{high:g} m: is the unit that of the depth files (data.options.unit)?"
            )
        return remarks

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        del content["medians"]
        share = self.valid / self.pixels if self.pixels else 0.0
        return {**content, "median": self.median, "valid_fraction": share}

    def target_lines(self) -> list[str]:
        if self.median is None or self.depth_range is None:
            return ["depth        none"]
        nearest, farthest = self.depth_range
        low, high = PLAUSIBLE_DEPTH
        doubt = "" if low <= self.median <= high else "; is the unit right?"
        return [
            f"depth        {nearest:.3g} m nearest, {self.median:.3g} m median, {farthest:.3g} m farthest{doubt}",
            f"known        {self.valid / self.pixels:.2%} of the pixels",
            f"intrinsics   of {self.cameras} images",
        ]


def empty_report(reader: DenseSet) -> CheckReport:
    """Nothing read yet."""
    task = task_of(reader)
    kind = {"detection": BoxReport, "depth": DepthReport}.get(task, LabelReport)
    return kind(task, len(reader), list(reader.classes))


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
        "target": None if sample.target is None else _target_facts(reader, sample),
    }


def _target_facts(reader: DenseSet, sample: Sample) -> dict[str, Any]:
    """What `add_target` of the reader's report takes."""
    target, task = sample.target, task_of(reader)
    if task == "detection":
        counted = ~target.ignored
        sizes = (target.boxes[:, 2:] - target.boxes[:, :2])[counted].astype(np.float64)
        return {
            "counts": np.bincount(target.labels[counted], minlength=len(reader.classes)),
            "ignored": int(target.ignored.sum()),
            "sides": np.sqrt(sizes.prod(axis=1)).tolist(),
        }
    if task == "depth":
        known = target.depth[target.depth > 0]
        return {
            "valid": known.size,
            "pixels": target.depth.size,
            "known": (float(known.min()), float(np.median(known)), float(known.max()))
            if known.size
            else (),
            "camera": target.intrinsics is not None,
        }
    labels = target[target != reader.ignore_index]
    return {
        "counts": np.bincount(labels.ravel(), minlength=len(reader.classes)),
        "ignored": int(target.size - labels.size),
    }


def _absent(classes: list[str], images: list[int]) -> list[str]:
    return [name for name, count in zip(classes, images, strict=True) if not count]


def _table(classes: list[str], heading: str, counts: list[int], images: list[int]) -> list[str]:
    """A row a class: its count, its share and the images it occurs in."""
    total = max(1, sum(counts))
    width = max(len(name) for name in classes)
    lines = [f"\n{'class':<{width}}  {heading:>14}  {'share':>8}  {'images':>7}"]
    for name, count, occurs in zip(classes, counts, images, strict=True):
        lines.append(f"{name:<{width}}  {count:>14,}  {count / total:>8.3%}  {occurs:>7}")
    absent = _absent(classes, images)
    return [*lines, f"\nnever occur: {', '.join(absent)}"] if absent else lines


def _joined(a: tuple[Any, Any] | None, b: tuple[Any, Any]) -> tuple[Any, Any]:
    return b if a is None else (min(a[0], b[0]), max(a[1], b[1]))


def _range_text(values: tuple[int, int] | None) -> str:
    return "none" if values is None else f"{values[0]}-{values[1]}"
