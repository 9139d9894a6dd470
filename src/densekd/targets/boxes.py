"""Boxes of one image, as arrays that move with the image's geometry.

A target goes through `crop`, `resize`, `flip` and `pad` as its image does; each gives a new target. Box corners are
points of the plane in which pixel j covers [j, j + 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from densekd.targets.report import CheckReport, absent_classes, class_table
from densekd.types import Boxes

LEAST_SIDE = 1e-3  # pixels; float32 knows coordinates of large images to a few ten-thousandths
LEAST_VISIBLE = 0.25  # of a box's area, for the object to be still worth finding


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
        absent = absent_classes(self.classes, self.images)
        return {**content, "side_range": self.side_range, "absent": absent}

    def target_lines(self) -> list[str]:
        sides = "none"
        if self.side_range is not None:
            sides = "{:.1f} smallest, {:.1f} median, {:.1f} largest".format(*self.side_range)
        return [
            f"objects      {sum(self.objects)} and {self.ignored} ignored; {self.empty} images without",
            f"box sides    {sides} (square root of the area, pixels)",
            *class_table(self.classes, "objects", self.objects, self.images),
        ]


@dataclass
class BoxTarget:
    """The objects of one image.

    Attributes:
        boxes: (n, 4) float32 XYXY in pixels.
        labels: (n,) int64 class indices.
        ignored: (n,) bool: crowds (COCO) and difficult objects (VOC).
        areas: (n,) float32 in pixels: of the object's mask where it is known, else of the box.
        image_id: the annotation file's own; -1 where there is none.

    Raises:
        ValueError: arrays of different length.
    """

    name: ClassVar = "boxes"
    report: ClassVar = BoxReport

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray
    image_id: int

    def __post_init__(self) -> None:
        self.boxes = np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)
        self.labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        self.ignored = np.asarray(self.ignored, dtype=bool).reshape(-1)
        self.areas = np.asarray(self.areas, dtype=np.float32).reshape(-1)
        lengths = [len(self.boxes), len(self.labels), len(self.ignored), len(self.areas)]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"boxes, labels, ignored and areas have {lengths} entries; expected one of each per object"
            )

    @classmethod
    def empty(
        cls, size: tuple[int, int] | None = None, ignore_index: int = -1, *, image_id: int = -1
    ) -> BoxTarget:
        """An image without objects, whatever its size."""
        return cls(np.empty((0, 4)), np.empty(0), np.empty(0), np.empty(0), image_id)

    def __len__(self) -> int:
        return len(self.boxes)

    def crop(
        self, top: int, left: int, height: int, width: int, least_visible: float = LEAST_VISIBLE
    ) -> BoxTarget:
        """Objects in a window, clipped to it, in its own pixels; areas shrink by the share that is cut off.

        An object, ignored or not, of whose box less than `least_visible` is left, or less than one pixel in width
        or height, is dropped: what is left of it is taken for background.
        """
        shifted = self.boxes - _float32(left, top, left, top)
        clipped = _clipped(shifted, (height, width))
        share = box_areas(clipped) / np.maximum(box_areas(shifted), np.finfo(np.float32).tiny)
        keep = (share >= least_visible) & (_sides(clipped).min(axis=1, initial=np.inf) >= 1)
        return BoxTarget(
            clipped[keep],
            self.labels[keep],
            self.ignored[keep],
            (self.areas * share)[keep],
            self.image_id,
        )

    def resize(
        self, from_size: tuple[int, int], to_size: tuple[int, int], zoom: float = 1.0
    ) -> BoxTarget:
        """The image goes from one (height, width) to another; `zoom` makes no difference to boxes.

        A box of which `LEAST_SIDE` or less is left in width or height is dropped: regression losses divide by sides.
        """
        y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
        scaled = _clipped(self.boxes * _float32(x, y, x, y), to_size)
        keep = _sides(scaled).min(axis=1, initial=np.inf) > LEAST_SIDE
        return BoxTarget(
            scaled[keep],
            self.labels[keep],
            self.ignored[keep],
            (self.areas * (x * y))[keep],
            self.image_id,
        )

    def flip(self, width: int) -> BoxTarget:
        """Mirrored left and right, in an image so wide."""
        x0, y0, x1, y1 = self.boxes.T
        return replace(self, boxes=np.stack([width - x1, y0, width - x0, y1], axis=1))

    def pad(self, size: tuple[int, int], ignore_index: int = -1) -> BoxTarget:
        """Unchanged: images are padded at the bottom and on the right."""
        return self

    @staticmethod
    def stack(targets: Sequence[BoxTarget]) -> list[BoxTarget]:
        """As they are: tensors out of workers are open files, and four an image would soon be too many of them."""
        return list(targets)

    @staticmethod
    def to_batch(stacked: Sequence[BoxTarget], inside: Tensor) -> list[Boxes]:
        """One `Boxes` an image, with its size without the batch's padding."""
        return [to_boxes(t, _extent(image)) for t, image in zip(stacked, inside, strict=True)]

    @staticmethod
    def numbered(targets: Sequence[Boxes], first: int) -> list[Boxes]:
        """`Batch.targets` of images with ids of their own, counted from `first`: scores know images by their id."""
        return [replace(target, image_id=first + i) for i, target in enumerate(targets)]

    def pack(self) -> tuple[list[np.ndarray], int]:
        """Four arrays, and the image's id."""
        return [self.boxes, self.labels, self.ignored, self.areas], int(self.image_id)

    @classmethod
    def unpack(cls, arrays: list[np.ndarray], extra: int) -> BoxTarget:
        """Copies of a few numbers, since torch takes no read-only arrays."""
        boxes, labels, ignored, areas = (array.copy() for array in arrays)
        return cls(boxes, labels, ignored, areas, extra)

    def facts(self, num_classes: int, ignore_index: int) -> dict[str, Any]:
        """See `BoxReport`."""
        counted = ~self.ignored
        sides = _sides(self.boxes)[counted].astype(np.float64)
        return {
            "counts": np.bincount(self.labels[counted], minlength=num_classes),
            "ignored": int(self.ignored.sum()),
            "sides": np.sqrt(sides.prod(axis=1)).tolist(),
        }


def to_boxes(target: BoxTarget, size: tuple[int, int]) -> Boxes:
    """As tensors; `size` is the image's (height, width) without padding."""
    return Boxes(
        torch.from_numpy(np.ascontiguousarray(target.boxes)),
        torch.from_numpy(target.labels),
        torch.from_numpy(target.ignored),
        torch.from_numpy(target.areas),
        target.image_id,
        size,
    )


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) XYXY -> (n,); 0 for a box that is inside out."""
    return np.maximum(_sides(boxes), 0).prod(axis=1)


def _extent(inside: Tensor) -> tuple[int, int]:
    """(H, W) bool -> (height, width) of the image without the padding, which lies at the bottom and on the right."""
    return int(inside.any(1).sum()), int(inside.any(0).sum())


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) XYXY -> (n, 2) widths and heights."""
    return boxes[:, 2:] - boxes[:, :2]


def _clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.clip(boxes, 0, _float32(width, height, width, height))


def _float32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)
