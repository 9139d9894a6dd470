"""What is known about one image, a file a kind of truth."""

from __future__ import annotations

import numpy as np

from densekd.targets.boxes import BoxTarget, box_areas, to_boxes
from densekd.targets.depth import DepthTarget, Intrinsics, resized_intrinsics, to_depth_maps

__all__ = [
    "BoxTarget",
    "DepthTarget",
    "Intrinsics",
    "box_areas",
    "empty_target",
    "resized_intrinsics",
    "to_boxes",
    "to_depth_maps",
]


def empty_target(task: str, size: tuple[int, int], ignore_index: int) -> object:
    """The target of an image (height, width) of which nothing is known: all ignored, no objects, no depth."""
    if task == "detection":
        return BoxTarget.empty()
    if task == "depth":
        return DepthTarget.empty(size)
    return np.full(size, ignore_index, dtype=np.uint8 if 0 <= ignore_index <= 255 else np.int16)
