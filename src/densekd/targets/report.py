"""What `densekd.data.check_all` finds in a data set of any kind of truth."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class CheckReport:
    """What was found in a data set, whatever its kind of truth; each kind has a subclass that counts its targets.

    Attributes:
        task: ``"segmentation"``, ``"detection"``, ``"depth"`` or the name of another one.
        samples: the number of samples in the set.
        read: the number of samples tried so far.
        classes: the classes' names; none for depth.
        labelled, unlabelled: the numbers of readable samples with and without a label.
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
        """Count one sample: its name, why it is bad (or None), its size, range of values and its target's facts."""
        self.read += 1
        if facts["bad"] is not None:
            self.bad.append((facts["name"], facts["bad"]))
            return
        self.sizes[facts["size"]] = self.sizes.get(facts["size"], 0) + 1
        self.image_range = joined(self.image_range, facts["range"])
        if facts["target"] is None:
            self.unlabelled += 1
            return
        self.labelled += 1
        self.add_target(facts["name"], facts["target"])

    def add_target(self, name: str, facts: dict[str, Any]) -> None:
        """Count the facts of the target of the sample `name`, as `facts` of its kind gives them."""
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
            f"image values {range_text(self.image_range)}",
            *self.target_lines(),
        ]
        if self.bad:
            lines.append("\nbad:")
            lines += [f"  {name}: {reason}" for name, reason in self.bad]
        return "\n".join(lines)


def absent_classes(classes: list[str], images: list[int]) -> list[str]:
    """The classes that occur in no image."""
    return [name for name, count in zip(classes, images, strict=True) if not count]


def class_table(
    classes: list[str], heading: str, counts: list[int], images: list[int]
) -> list[str]:
    """Lines of a table: for each class its count, its share and the number of images that it occurs in."""
    total = max(1, sum(counts))
    width = max(len(name) for name in classes)
    lines = [f"\n{'class':<{width}}  {heading:>14}  {'share':>8}  {'images':>7}"]
    for name, count, occurs in zip(classes, counts, images, strict=True):
        lines.append(f"{name:<{width}}  {count:>14,}  {count / total:>8.3%}  {occurs:>7}")
    absent = absent_classes(classes, images)
    return [*lines, f"\nnever occur: {', '.join(absent)}"] if absent else lines


def joined(a: tuple[Any, Any] | None, b: tuple[Any, Any]) -> tuple[Any, Any]:
    """The range (smallest, largest) that spans both; None stands for nothing seen yet."""
    return b if a is None else (min(a[0], b[0]), max(a[1], b[1]))


def range_text(values: tuple[int, int] | None) -> str:
    """``"0-255"``, or ``"none"``."""
    return "none" if values is None else f"{values[0]}-{values[1]}"
