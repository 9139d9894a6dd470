"""Cross-entropy and divergence of bilinearly upsampled logits, of which only some rows exist at a time.

Value and gradient are made together, one band of rows after the other: upsample it, take its softmax, turn that into
the band's gradient, add what this is for the small logits, forget the band. A loss is a scalar, so all that backward
has to do is multiply. The grid is that of `densekd.ops.resize.resize_map`.

Letters: N images, K classes, h×w the logits, H×W what they are upsampled to; a band is n images and r rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from densekd.losses._checks import no_autocast
from densekd.ops.resize import resize_map

# Entries (n·K·r·W) of a band. On a CPU a few megabytes, which stay in its cache (2**18 to 2**21 took 1 to 1.6 times as
# long as the best of them, 2**24 up to 3 times); elsewhere enough to be worth the launches.
_BAND = {"cpu": 2**20}
_BAND_ELSEWHERE = 2**24

Size = tuple[int, int]
At = tuple[slice, slice]  # images, rows


def bands_pay(x: Tensor, size: Size) -> bool:
    """Whether a map (N, K, h, w) is to be upsampled to `size` and this makes more entries than one band.

    Not while compiling, which would unroll the bands.
    """
    own = tuple(x.shape[2:])
    if torch.compiler.is_compiling() or own == size or own[0] > size[0] or own[1] > size[1]:
        return False
    return x.shape[0] * x.shape[1] * size[0] * size[1] > _budget(x)


def cross_entropy_sum(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`torch.nn.functional.cross_entropy` of upsampled logits with ``reduction="sum"``.

    Args:
        logits: (N, K, h, w), float32 or float64.
        target: (N, H, W) int64.
        class_weights: (K,), of the logits' dtype.
    """
    gradient = _room_for_gradient(logits)
    losses = cross_entropy_map(
        logits, target, ignore_index=ignore_index, class_weights=class_weights,
        label_smoothing=label_smoothing, gradient=gradient,
    )  # fmt: skip
    return _KnownGradient.apply(logits, losses.sum(), gradient)


@torch.no_grad()
def cross_entropy_map(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    gradient: Tensor | None = None,
) -> Tensor:
    """The same with ``reduction="none"``: (N, H, W), without a graph.

    Args:
        gradient: (N, K, h, w), to which the gradient of the sum is added.
    """
    rows = _Rows(logits, (target.shape[1], target.shape[2]))
    losses = logits.new_empty(target.shape)
    for at in rows.bands():
        z = rows.upsample(at)
        losses[at] = _cross_entropy(
            z, target[at][:, None], ignore_index, class_weights, label_smoothing
        )
        if gradient is not None:
            rows.add_transposed(z, at, gradient)
    return losses


def divergence_sum(
    student: Tensor, teacher: Tensor, size: Size, mask: Tensor | None, *, entropy: bool = True
) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) of two upsampled maps, summed over the mask.

    Args:
        student: (N, K, h, w), float32 or float64.
        teacher: (N, K, h', w'), the same dtype; receives no gradient.
        size: what both are upsampled to; a map may have it already.
        mask: (N, *size) bool.
        entropy: False leaves out the teacher's entropy: soft cross-entropy.
    """
    gradient = _room_for_gradient(student)
    with torch.no_grad():
        s, t = _Rows(student, size), _Rows(teacher, size)
        losses = student.new_empty(student.shape[0], *size)
        for at in s.bands():
            z, other = s.upsample(at), t.upsample(at)
            valid = None if mask is None else mask[at][:, None]
            if valid is not None:  # what is masked may hold anything
                z.masked_fill_(~valid, 0.0)
                other.masked_fill_(~valid, 0.0)
            losses[at] = _divergence(z, other, valid, entropy)
            if gradient is not None:
                s.add_transposed(z, at, gradient)
    return _KnownGradient.apply(student, losses.sum(), gradient)


def _cross_entropy(
    z: Tensor,
    target: Tensor,
    ignore_index: int,
    class_weights: Tensor | None,
    label_smoothing: float,
) -> Tensor:
    """Logits (n, K, r, W), which become their gradient, and labels (n, 1, r, W) -> losses (n, r, W)."""
    valid = target != ignore_index
    label = target.where(valid, 0)
    # The distribution aimed at: `true` at the label and `rest` (K, 1, 1) everywhere; both 0 where ignored.
    true = (1 - label_smoothing) * valid.to(z.dtype)
    if class_weights is not None:
        true = true * class_weights[label]
    z -= z.amax(dim=1, keepdim=True)
    losses = -true * z.gather(1, label)
    mass, rest = true, None
    if label_smoothing > 0:
        rest = z.new_ones(z.shape[1]) if class_weights is None else class_weights
        rest = (label_smoothing / z.shape[1]) * rest[:, None, None]
        losses -= (rest * z).sum(dim=1, keepdim=True)
        mass = true + valid * rest.sum()
    total = z.exp_().sum(dim=1, keepdim=True)
    losses += mass * total.log()

    z *= mass / total
    z.scatter_add_(1, label, -true)
    if rest is not None:
        z.addcmul_(valid.to(z.dtype), rest, value=-1)
    return losses.masked_fill(~valid, 0.0)[:, 0]


def _divergence(z: Tensor, teacher: Tensor, valid: Tensor | None, entropy: bool) -> Tensor:
    """Logits (n, K, r, W), which become their gradient, and the teacher's, which are spoiled -> losses (n, r, W)."""
    z -= z.amax(dim=1, keepdim=True)
    teacher -= teacher.amax(dim=1, keepdim=True)
    weighed = teacher - z if entropy else -z
    total_t = teacher.exp_().sum(dim=1, keepdim=True)
    losses = weighed.mul_(teacher).sum(dim=1, keepdim=True) / total_t
    total_s = z.exp_().sum(dim=1, keepdim=True)
    losses += (total_s / total_t if entropy else total_s).log()

    counts = z.new_ones(()) if valid is None else valid.to(z.dtype)
    z *= counts / total_s
    z -= teacher.mul_(counts / total_t)
    return (losses if valid is None else losses.masked_fill(~valid, 0.0))[:, 0]


class _Rows:
    """A map (N, K, h, w), of which any rows can be upsampled, and a gradient taken back."""

    def __init__(self, x: Tensor, size: Size) -> None:
        self.x = x.detach()
        self.size = size
        h = x.shape[2]
        self.vertical = _matrix(h, size[0], x)
        self.horizontal = _matrix(x.shape[3], size[1], x)
        # The upper of the two rows that each of the H rows lies between.
        gaps, steps = max(h - 1, 1), max(size[0] - 1, 1)
        self.above = [min(y * (h - 1) // steps, gaps - 1) for y in range(size[0])]

    def bands(self) -> Iterator[At]:
        """Whole images where a band has room for them, else rows of one."""
        n, k = self.x.shape[:2]
        height, width = self.size
        row = k * width
        rows = min(max(_budget(self.x) // row, 1), height)
        images = max(_budget(self.x) // (row * height), 1)
        for i in range(0, n, images):
            for y in range(0, height, rows):
                yield slice(i, min(i + images, n)), slice(y, min(y + rows, height))

    def upsample(self, at: At) -> Tensor:
        """(n, K, r, W)."""
        images, rows = at
        source = self._source(rows)
        # Horizontally first, on the few rows of the map. Torch is several times faster where channels lie last, what
        # follows where they do not.
        few = self.x[images, :, source].contiguous(memory_format=torch.channels_last)
        wide = resize_map(few, (few.shape[2], self.size[1])).contiguous()
        z = wide.new_empty(*wide.shape[:2], rows.stop - rows.start, self.size[1])
        y = rows.start
        while y < rows.stop:  # all rows between the same two of the map
            above = self.above[y]
            below = min(above + 1, self.x.shape[2] - 1)
            end = y + 1
            while end < rows.stop and self.above[end] == above:
                end += 1
            torch.lerp(
                wide[:, :, above - source.start, None],
                wide[:, :, below - source.start, None],
                self.vertical[y:end, below, None],
                out=z[:, :, y - rows.start : end - rows.start],
            )
            y = end
        return z

    def add_transposed(self, z: Tensor, at: At, gradient: Tensor) -> None:
        """Add what `z` (n, K, r, W), the gradient of the upsampled rows, is for the map."""
        images, rows = at
        source = self._source(rows)
        n, k, r, _ = z.shape
        with no_autocast(z):
            back = self.vertical[rows, source].T.expand(n * k, -1, -1)
            wide = torch.bmm(back, z.view(n * k, r, -1))  # (n·K, rows of the map, W)
            gradient[images, :, source] += (wide @ self.horizontal).view(n, k, -1, self.x.shape[3])

    def _source(self, rows: slice) -> slice:
        """The rows of the map that make these."""
        return slice(self.above[rows.start], min(self.above[rows.stop - 1] + 2, self.x.shape[2]))


def _matrix(small: int, large: int, like: Tensor) -> Tensor:
    """(large, small): how much each of `small` samples counts in each of `large`."""
    identity = torch.eye(small, dtype=like.dtype, device=like.device)
    return resize_map(identity[None, None], (large, small))[0, 0]


def _budget(x: Tensor) -> int:
    return _BAND.get(x.device.type, _BAND_ELSEWHERE)


def _room_for_gradient(x: Tensor) -> Tensor | None:
    """Zeros, or None where nobody will ask for the gradient."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return None
    return torch.zeros_like(x, memory_format=torch.contiguous_format, requires_grad=False)


class _KnownGradient(torch.autograd.Function):
    """`value`, a function of `x` whose gradient is known already."""

    @staticmethod
    def forward(x: Tensor, value: Tensor, gradient: Tensor | None) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore[bad-override]
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None
