"""How a map is written down: every form takes a fixed number of bytes an image, and says how far off it may be.

Letters: N images, C channels, h×w places. Bytes are (N, `nbytes`) uint8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from densekd.errors import UserError

FORMS = ("fp16", "int8", "top_k")
LARGEST_HALF = 65504.0
# Probability left for all classes beside the kept ones where rounding leaves less.
LEAST_REST = 1e-6


class Storage(Protocol):
    """One map of a known shape as bytes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        ...

    @property
    def nbytes(self) -> int:
        """The size of one image's map."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, nbytes) uint8, each image by itself."""
        ...

    def decode(self, raw: Tensor) -> Tensor:
        """(N, nbytes) uint8 -> (N, C, h, w) float32."""
        ...

    def seen(self, x: Tensor) -> Tensor:
        """What the error is an error of: the values, or their softmax."""
        ...

    def error(self, x: Tensor) -> Tensor:
        """The largest difference between `seen(x)` and `seen(decode(encode(x)))`, at each place or for all."""
        ...


@dataclass(frozen=True)
class Half:
    """float16: off by at most 2⁻¹¹ of a value. Values beyond ±65504 are a UserError: they would be infinite."""

    shape: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        return 2 * math.prod(self.shape)

    def encode(self, x: Tensor) -> Tensor:
        largest = float(x.abs().amax())
        if largest > LARGEST_HALF:
            raise UserError(
                f"`storage` fp16 holds values up to {LARGEST_HALF:g} and the teacher's reach "
                f"{largest:.4g}; take `storage` int8"
            )
        return _bytes(x.half())

    def decode(self, raw: Tensor) -> Tensor:
        return _values(raw, torch.float16, self.shape).float()

    def seen(self, x: Tensor) -> Tensor:
        return x.float()

    def error(self, x: Tensor) -> Tensor:
        return x.float().abs() * 2**-11 + 2**-25


@dataclass(frozen=True)
class Int8:
    """8 bits a value, in 255 even steps between a channel's smallest and largest value in the image: off by at most
    half a step. A channel's smallest value, a ReLU's 0 for instance, is exact up to float32's rounding."""

    shape: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) + 8 * self.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        x = x.float().flatten(2)  # (N, C, h·w)
        low, high = x.aminmax(dim=2, keepdim=True)
        step = (high - low) / 255
        levels = ((x - low) / step.where(step > 0, 1.0)).round_().clamp_(0, 255).to(torch.uint8)
        return torch.cat([_bytes(levels), _bytes(torch.cat([low, step], dim=2))], dim=1)

    def decode(self, raw: Tensor) -> Tensor:
        count = math.prod(self.shape)
        low, step = _values(raw[:, count:], torch.float32, (self.shape[0], 2, 1)).split(1, dim=2)
        return raw[:, :count].reshape(-1, *self.shape) * step + low

    def seen(self, x: Tensor) -> Tensor:
        return x.float()

    def error(self, x: Tensor) -> Tensor:
        low, high = x.float().flatten(2).aminmax(dim=2)
        return ((high - low) / 510 + 2**-22 * high.abs().maximum(low.abs()))[:, :, None, None]


@dataclass(frozen=True)
class TopK:
    """The k largest log-probabilities of a softmax over channels in float16; what is left is spread evenly.

    Comes back as log-probabilities, whose softmax at any temperature is that of logits. Half precision moves a kept
    probability p by up to p·|ln p|·2⁻¹¹ (at most 2·10⁻⁴), and the sum of all kept ones, and so the sum of the others,
    by up to max(1, ln k)·2⁻¹¹. A probability that is not kept is off by the smallest kept one besides.
    """

    shape: tuple[int, int, int]
    k: int

    @property
    def nbytes(self) -> int:
        return self.k * math.prod(self.shape[1:]) * (2 + self._index.itemsize)

    @property
    def _index(self) -> torch.dtype:
        return torch.uint8 if self.shape[0] <= 256 else torch.int16

    def encode(self, x: Tensor) -> Tensor:
        values, places = x.float().log_softmax(dim=1).topk(self.k, dim=1)
        values = values.clamp(min=-LARGEST_HALF).half()
        return torch.cat([_bytes(values), _bytes(places.to(self._index))], dim=1)

    def decode(self, raw: Tensor) -> Tensor:
        c, h, w = self.shape
        kept = (self.k, h, w)
        cut = 2 * math.prod(kept)
        values = _values(raw[:, :cut], torch.float16, kept).float()
        # A record of a file that was tampered with may name classes that there are not.
        places = _values(raw[:, cut:], self._index, kept).long().clamp(0, c - 1)
        rest = (1 - values.exp().sum(dim=1, keepdim=True)).clamp(min=LEAST_REST) / (c - self.k)
        return rest.log().expand(-1, c, -1, -1).scatter(1, places, values)

    def seen(self, x: Tensor) -> Tensor:
        return x.float().softmax(dim=1)

    def error(self, x: Tensor) -> Tensor:
        rounding = 2e-4 + max(1.0, math.log(self.k)) * 2**-11
        return x.float().softmax(dim=1).topk(self.k, dim=1).values[:, -1:] + rounding


def make_storage(form: str, shape: tuple[int, int, int], k: int) -> Storage:
    if form == "top_k":
        return TopK(shape, k)
    return Int8(shape) if form == "int8" else Half(shape)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().flatten(1).view(torch.uint8)


def _values(raw: Tensor, dtype: torch.dtype, shape: tuple[int, int, int]) -> Tensor:
    # Cloned: a slice of rows may begin where no value of this type may.
    return raw.clone(memory_format=torch.contiguous_format).view(dtype).reshape(-1, *shape)
