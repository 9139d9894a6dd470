"""Class maps: a class index at every pixel, as a bare (H, W) array of integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densekd.errors import DataError
from densekd.targets.arrays import mirrored, nearest, padded
from densekd.targets.report import (
    CheckReport,
    absent_classes,
    class_table,
    joined,
    range_text,
)
from densekd.targets.window import Window


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
        return absent_classes(self.classes, self.images)

    def add_target(self, name: str, facts: dict[str, Any]) -> None:
        counts = facts["counts"]
        self.ignored += facts["ignored"]
        self.pixels = [a + int(b) for a, b in zip(self.pixels, counts, strict=True)]
        self.images = [a + int(b > 0) for a, b in zip(self.images, counts, strict=True)]
        present = np.flatnonzero(counts)
        if len(present):
            self.label_range = joined(self.label_range, (int(present[0]), int(present[-1])))

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
                "are the label values those of the class list? (The plain folder reader takes masks of 0 and 255 with "
                "`binary`.)"
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
            f"label values {range_text(self.label_range)} of 0-{len(self.classes) - 1}; "
            f"{self.ignored_fraction:.2%} of the pixels ignored",
            *class_table(self.classes, "pixels", self.pixels, self.images),
        ]


class ClassMap:
    """The kind of truth whose targets are bare (H, W) integer arrays; the class is only a home for what they can do.

    Values are class indices, or the data set's ignore_index where no class is known. See `TargetKind` for what each
    method is for.
    """

    name = "class maps"
    report = LabelReport

    @staticmethod
    def empty(size: tuple[int, int], ignore_index: int) -> np.ndarray:
        """All ignored."""
        return np.full(size, ignore_index, dtype=np.uint8 if 0 <= ignore_index <= 255 else np.int16)

    @staticmethod
    def crop(labels: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A view."""
        return labels[top : top + height, left : left + width]

    @staticmethod
    def resize(
        labels: np.ndarray,
        from_size: tuple[int, int],
        to_size: tuple[int, int],
        zoom: float = 1.0,
    ) -> np.ndarray:
        """Each pixel takes the nearest class; `zoom` makes no difference."""
        return labels if tuple(from_size) == tuple(to_size) else nearest(labels, to_size)

    @staticmethod
    def flip(labels: np.ndarray, width: int) -> np.ndarray:
        """Left and right exchanged."""
        return mirrored(labels)

    @staticmethod
    def pad(labels: np.ndarray, size: tuple[int, int], ignore_index: int) -> np.ndarray:
        """Ignored at the bottom and on the right; contiguous."""
        return padded(labels, size, ignore_index)

    @staticmethod
    def stack(targets: Sequence[np.ndarray]) -> Tensor:
        """(N, H, W), of the set's own integers: int64 is eight times as much to hand over to the main process."""
        return torch.from_numpy(np.stack(targets))

    @staticmethod
    def to_batch(stacked: Tensor, inside: Tensor) -> Tensor:
        """As it is; `Batch.to` makes it int64 on the device."""
        return stacked

    @staticmethod
    def pack(labels: np.ndarray) -> tuple[list[np.ndarray], None]:
        """The array, and nothing beside it."""
        return [labels], None

    @staticmethod
    def unpack(arrays: list[np.ndarray], extra: None) -> np.ndarray:
        """The array."""
        return arrays[0]

    @staticmethod
    def facts(labels: np.ndarray, num_classes: int, ignore_index: int) -> dict[str, Any]:
        """See `LabelReport`."""
        known = labels[labels != ignore_index]
        return {
            "counts": np.bincount(known.ravel(), minlength=num_classes),
            "ignored": int(labels.size - known.size),
        }

    @staticmethod
    def from_pixels(
        pixels: Tensor,
        inside: Tensor,
        extras: Sequence[None],
        windows: Sequence[Window],
        ignore_index: int,
    ) -> Tensor:
        """`Batch.targets`, made on the device.

        Args:
            pixels: (N, H, W): at each pixel of the batch, the value of the nearest pixel of the source in the array
                that `pack` gives; anything in the padding. It is in its place already, mirrored or not.
            inside: (N, H, W) bool, False in the padding.
            extras: for each sample, what `pack` gives beside the array.
            windows: for each sample, the window that is shown.
            ignore_index: of the data set.
        """
        return pixels.masked_fill(~inside, ignore_index)

    @staticmethod
    def is_mixed(labels: np.ndarray, largest_share: float, ignore_index: int) -> bool:
        """Whether several classes occur and each has less than this share of the pixels that are not ignored."""
        counts = np.bincount(labels[labels != ignore_index])
        return bool(np.count_nonzero(counts) > 1 and counts.max() < largest_share * counts.sum())
