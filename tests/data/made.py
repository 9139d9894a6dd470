"""A made-up set of any kind of truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densekd.data import BoxTarget, DepthTarget, Sample


class Mixed:
    """Samples of one task in several sizes, the last without a target; nothing but arguments decide."""

    classes = ("a", "b")
    palette = ((0, 0, 0), (9, 9, 9))
    ignore_index = 255

    def __init__(self, task: str, length: int = 5, channels: int = 3) -> None:
        self.task = task
        self.length = length
        self.channels = channels

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"mixed/{index}"

    def sources(self, index: int) -> list[Path]:
        return []

    def read(self, index: int) -> Sample:
        generator = np.random.default_rng(index)
        size = (12 + index, 17)
        target = None
        if index < self.length - 1:
            boxes = np.float32([[2.25, 3, 14, 9.5]] * index).reshape(-1, 4)
            target = {
                "segmentation": generator.integers(0, 2, size, dtype=np.int16),
                "depth": DepthTarget(
                    generator.random(size, dtype=np.float32), (9.1, 1 / 3, 8, 6) if index else None
                ),
                "detection": BoxTarget(boxes, [1] * index, [True] * index, [50] * index, 7),
            }[self.task]
        image = generator.integers(0, 256, (*size, self.channels), dtype=np.uint8)
        return Sample(image, target, self.name(index))
