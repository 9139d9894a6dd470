"""A kind of truth that the package does not know: surface normals, and a made-up set of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from densekd.data import Sample
from densekd.targets import CheckReport
from densekd.targets.arrays import mirrored, nearest, padded


@dataclass
class NormalReport(CheckReport):
    """Counts pixels with a normal."""

    known: int = 0
    unknown: list[str] = field(default_factory=list)

    def add_target(self, name, facts):
        self.known += facts["known"]
        if not facts["known"]:
            self.unknown.append(name)

    def useless(self):
        return [(name, "no normal at any pixel") for name in self.unknown]

    def remarks(self):
        return []

    def target_lines(self):
        return [f"normals      {self.known} pixels"]


@dataclass
class NormalMap:
    """(H, W, 3) float32 unit vectors; zero where unknown. x points to the right."""

    name = "surface normals"
    report = NormalReport

    vectors: np.ndarray

    @classmethod
    def empty(cls, size, ignore_index):
        return cls(np.zeros((*size, 3), np.float32))

    def crop(self, top, left, height, width):
        return NormalMap(self.vectors[top : top + height, left : left + width])

    def resize(self, from_size, to_size, zoom):
        return self if from_size == to_size else NormalMap(nearest(self.vectors, to_size))

    def flip(self, width):
        return NormalMap(mirrored(self.vectors) * np.float32([-1, 1, 1]))

    def pad(self, size, ignore_index):
        return NormalMap(padded(self.vectors, size, 0))

    @staticmethod
    def stack(targets):
        return torch.from_numpy(np.stack([target.vectors for target in targets]))

    @staticmethod
    def to_batch(stacked, inside):
        return stacked.permute(0, 3, 1, 2)

    def pack(self):
        return [self.vectors], None

    @classmethod
    def unpack(cls, arrays, extra):
        return cls(arrays[0])

    def facts(self, num_classes, ignore_index):
        return {"known": int((self.vectors != 0).any(-1).sum())}

    @classmethod
    def from_pixels(cls, pixels, inside, extras, windows, ignore_index):
        sides = torch.tensor([[-1.0 if w.flip else 1.0, 1, 1] for w in windows])
        vectors = pixels * sides[:, None, None].to(pixels)
        return cls.to_batch(vectors.masked_fill(~inside[..., None], 0), inside)


class NormalSet:
    """Images whose colour tells the normal: red grows to the right, as x does. The last has no target."""

    target = NormalMap
    classes = ()
    palette = ()
    ignore_index = 255
    channels = 3

    def __init__(self, length: int = 5) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"normals/{index}"

    def sources(self, index: int) -> list[Path]:
        return []

    def read(self, index: int) -> Sample:
        size = (12 + index, 16)
        x = np.broadcast_to(np.linspace(-0.9, 0.9, size[1], dtype=np.float32), size)
        z = -np.sqrt(1 - x**2)
        image = np.full((*size, 3), 10 * index, np.uint8)
        image[..., 0] = np.arange(size[1]) * 10
        target = NormalMap(np.stack([x, 0 * x, z], -1)) if index < self.length - 1 else None
        return Sample(image, target, self.name(index))
