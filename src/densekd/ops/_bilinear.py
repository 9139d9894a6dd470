"""The arithmetic of `resize_map` on the CPU, in pieces, so that the full-size map need not exist.

PyTorch's kernel computes ``h0 * (w0 * a + w1 * b) + h1 * (w0 * c + w1 * d)``. Where the processor can, its compiler
joins the first product of each sum and the sum into one rounding; so does `torch.addcmul`. `is_exact` tries once
whether both have the same rounding in the build at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from densekd.ops.resize import ALIGN_CORNERS, resize_map

# PyTorch uses another kernel for three channels, and where height + width is at most 128. The rounding of that kernel
# depends on the number of channels, so there all channels must be computed together.
OTHER_CHANNELS, OTHER_SIZE = 3, 128
ROWS = 8  # the rows of a band where the map already has its size


def lerp(a: Tensor, b: Tensor, w0: Tensor, w1: Tensor) -> Tensor:
    """``w0 * a + w1 * b`` with the kernel's roundings."""
    return torch.addcmul(w1 * b, w0, a)


@dataclass(frozen=True)
class Axis:
    """How one side of a map is resized. A cell lies between two neighbours of the small map.

    Attributes:
        near, far: (large,) the two neighbours of each place on the large side, far the later one.
        low, high: (cells,) a cell's two neighbours.
        first, count: (cells,) the places on the large side that lie in it.
        w0, w1: (large,) float32 weights of the neighbours at each place.
    """

    near: Tensor
    far: Tensor
    low: Tensor
    high: Tensor
    first: Tensor
    count: Tensor
    w0: Tensor
    w1: Tensor

    @classmethod
    def make(cls, small: int, large: int) -> Axis:
        top = torch.tensor(float(small - 1))
        scale = top / (large - 1) if large > 1 else torch.zeros(())
        real = scale * torch.arange(large, dtype=torch.float32)
        near = real.long().clamp(max=small - 1)
        w1 = (real - near).clamp(0, 1)
        # Where the size stays the kernel reads one neighbour only: 0 times an infinite other one would be NaN.
        far = near if small == large else (near + 1).clamp(max=small - 1)
        low, count = torch.unique_consecutive(near, return_counts=True)
        first = count.cumsum(0) - count
        return cls(near, far, low, far[first], first, count, 1 - w1, w1)

    def places(self) -> Tensor:
        """(longest, cells) places of each cell; a shorter one repeats its last."""
        steps = torch.arange(int(self.count.max()))[:, None]
        return self.first + torch.minimum(steps, self.count - 1)


def bands(maps: Tensor, size: Sequence[int]) -> Iterator[tuple[slice, Tensor]]:
    """Maps (N, K, h, w) -> (rows, resize_map(maps, size)[:, :, rows]), a few rows at a time, from the top.

    The bits are those of `resize_map`. Where the pieces would give other bits, and on a GPU, which is faster with large
    pieces, all rows come at once from `resize_map` itself. The caller must not write to them.
    """
    if maps.device.type == "cpu" and tuple(maps.shape[-2:]) == tuple(size):
        for start in range(0, size[0], ROWS):
            rows = slice(start, min(start + ROWS, size[0]))
            yield rows, maps[:, :, rows]
        return
    if not is_exact(maps, size):
        yield slice(0, size[0]), resize_map(maps, size)
        return
    y, x = Axis.make(maps.shape[2], size[0]), Axis.make(maps.shape[3], size[1])

    def row(i: int) -> Tensor:
        """(N, K, 1, W)"""
        line = maps[:, :, i]
        return lerp(line.index_select(2, x.near), line.index_select(2, x.far), x.w0, x.w1)[
            :, :, None
        ]

    below: tuple[int, Tensor] | None = None  # the upper neighbour of the next cell, mostly
    for low, high, first, count in zip(
        y.low.tolist(), y.high.tolist(), y.first.tolist(), y.count.tolist(), strict=True
    ):
        upper = below[1] if below is not None and below[0] == low else row(low)
        below = (high, row(high))
        rows = slice(first, first + count)
        yield rows, lerp(upper, below[1], y.w0[rows, None], y.w1[rows, None])


def is_exact(maps: Tensor, size: Sequence[int]) -> bool:
    """Whether `lerp` gives the bits of `resize_map` for such maps."""
    return (
        maps.device.type == "cpu"
        and maps.dtype == torch.float32
        and maps.is_contiguous()
        and maps.shape[1] != OTHER_CHANNELS
        and sum(size) > OTHER_SIZE
        and _same_bits()
    )


@lru_cache
def _same_bits() -> bool:
    """Tries it on a random map, whose sides are no multiples of a vector's length."""
    assert ALIGN_CORNERS
    maps = torch.randn(2, 5, 9, 11, generator=torch.Generator().manual_seed(0))
    y, x = Axis.make(9, 83), Axis.make(11, 97)
    rows = lerp(maps[..., x.near], maps[..., x.far], x.w0, x.w1)
    whole = lerp(rows[:, :, y.near], rows[:, :, y.far], y.w0[:, None], y.w1[:, None])
    return torch.equal(whole, resize_map(maps, (83, 97)))
