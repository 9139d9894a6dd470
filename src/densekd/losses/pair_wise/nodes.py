"""The nodes of the pair-wise term: a map pooled to cells, and the norm of a node.

Letters: N images, C channels, h×w the map, p×q the grid of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from densekd.losses._checks import check_map, check_mask, full_precision
from densekd.losses.pair_wise.arguments import Form, resolve

# Pixels of a cell up to which it is averaged pixel by pixel; of larger ones by PyTorch's pooling.
_FEW = 16
# A node shorter than this has no direction and is not normed: its cosines are (nearly) 0, its gradient is finite.
_ZERO_NORM = 1e-8


def pool_nodes(
    features: Tensor,
    *,
    granularity: int | float = 2,
    pooling: str = "avg",
    mask: Tensor | None = None,
    convention: str = "paper",
) -> Tensor:
    """The nodes of a map as `pair_wise` makes them, not normed: what it needs of a teacher's map and no more.

    Args:
        features: (N, C, h, w).
        granularity: β, as in `pair_wise`.
        pooling: ``"avg"`` or ``"max"``.
        mask: (N, h, w) bool, True where a pixel counts. A node without valid pixels is zero.
        convention: a preset, as in `pair_wise`.

    Returns:
        (N, C, p, q) with p = ⌈h/β⌉ and q = ⌈w/β⌉ (float32 for half-precision input).
    """
    form = resolve(Form(granularity, pooling), convention)
    check_map("features", features)
    check_mask(mask, features)
    cell = cell_of(form.granularity, features.shape[-2:])
    return make_nodes(full_precision(features), cell, form.pooling, mask)[0]


def check_nodes(student: Tensor, teacher: Tensor, cell: tuple[int, int]) -> None:
    """With `pooled_teacher`: the teacher's nodes lie on the grid that the student's map is pooled to."""
    check_map("student", student)
    check_map("teacher", teacher)
    n, _, h, w = student.shape
    p, q = -(-h // cell[0]), -(-w // cell[1])
    if teacher.shape[0] != n or teacher.shape[2:] != (p, q):
        raise ValueError(
            f"teacher {tuple(teacher.shape)} with pooled_teacher=True; expected nodes of shape ({n}, C', {p}, {q}), "
            f"cells of {cell[0]}×{cell[1]} of student {tuple(student.shape)}: pool it with pool_nodes, with the same "
            "granularity and convention, from a map of the student's size"
        )


def cell_of(granularity: int | float, size: torch.Size) -> tuple[int, int]:
    """Height and width of a node's cell in pixels, never more than the map."""
    h, w = size
    if isinstance(granularity, float):
        return max(1, int(h * granularity)), max(1, int(w * granularity))
    return min(granularity, h), min(granularity, w)


def make_nodes(
    x: Tensor, cell: tuple[int, int], pooling: str, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(N, C, h, w) -> nodes (N, C, p, q) and which of them are valid, (N, 1, p, q) bool or None for all."""
    if mask is None:
        if cell == (1, 1):
            return x, None
        return (_average(x, cell, None) if pooling == "avg" else _largest(x, cell)), None
    counts = mask[:, None]  # (N, 1, h, w)
    valid = _largest(counts.to(x.dtype), cell) > 0
    if pooling == "avg":
        return _average(x, cell, counts), valid
    nodes = _largest(x.masked_fill(~counts, float("-inf")), cell)
    return nodes.masked_fill(~valid, 0.0), valid


def _average(x: Tensor, cell: tuple[int, int], counts: Tensor | None) -> Tensor:
    """Mean over each cell's pixels that count (N, 1, h, w); 0 where none does."""
    if cell[0] * cell[1] <= _FEW and not torch.compiler.is_compiling():
        result: Any = _CellMeans.apply(x, cell, counts)
        return result
    # There is no padding to count. But where it is counted, torch.compile divides the gradient of a cell that the
    # border cuts by the whole cell (torch 2.14: pytorch#198119).
    pool = partial(F.avg_pool2d, kernel_size=cell, ceil_mode=True, count_include_pad=False)
    if counts is None:
        return pool(x)
    share = pool(counts.to(x.dtype))
    return pool(x.masked_fill(~counts, 0.0)) / torch.where(share > 0, share, 1.0)


class _CellMeans(torch.autograd.Function):
    """`_average` of small cells, pixel by pixel of the cell: half the time of masking, pooling and their backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cell: tuple[int, int], counts: Tensor | None) -> Tensor:
        h, w = x.shape[-2:]
        total = x.new_zeros(*x.shape[:2], -(-h // cell[0]), -(-w // cell[1]))
        number = x.new_zeros(x.shape[0], 1, *total.shape[-2:])
        for pixel in _pixels(cell):
            part = x[pixel]
            inner = (..., slice(part.shape[-2]), slice(part.shape[-1]))
            if counts is None:
                total[inner] += part
                number[inner] += 1
            else:
                total[inner] += part.masked_fill(~counts[pixel], 0.0)
                number[inner] += counts[pixel]
        number = number.clamp_(min=1)
        ctx.cell, ctx.size = cell, (h, w)
        ctx.save_for_backward(number, counts)
        return total.div_(number)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore[bad-override]
        number, counts = ctx.saved_tensors
        grad = grad / number
        out = grad.new_empty(*grad.shape[:2], *ctx.size)
        for pixel in _pixels(ctx.cell):
            part = out[pixel]
            part.copy_(grad[..., : part.shape[-2], : part.shape[-1]])
            if counts is not None:
                part.masked_fill_(~counts[pixel], 0.0)
        return out, None, None


def _pixels(cell: tuple[int, int]) -> Iterator[tuple[Any, ...]]:
    """Indices of the maps that each pixel of the cells makes."""
    for y in range(cell[0]):
        for x in range(cell[1]):
            yield (..., slice(y, None, cell[0]), slice(x, None, cell[1]))


def _largest(x: Tensor, cell: tuple[int, int]) -> Tensor:
    return F.max_pool2d(x, cell, cell, ceil_mode=True)


def norm_of(x: Tensor, norm_gradient: bool) -> Tensor:
    """Each node's L2 norm, (N, 1, ...). That of a zero node is 1: it stays zero and gets a finite gradient."""
    square = x.square().sum(dim=1, keepdim=True)
    norm = torch.where(square > _ZERO_NORM**2, square, 1.0).sqrt()
    # As the authors have it. Differs from their code for a zero node, whose gradient is 1e8 times larger there.
    return norm if norm_gradient else norm.detach() + 1e-8


def through_norm(grad: Tensor, unit: Tensor, norm: Tensor, norm_gradient: bool) -> Tensor:
    """In place: the gradient with respect to x from that with respect to unit = x / norm."""
    if norm_gradient:
        along = (unit * grad).sum(dim=1, keepdim=True)
        grad.addcmul_(unit, along, value=-1)
    return grad.div_(norm)


def refuse_second_derivative() -> None:
    # PyTorch's once_differentiable looks at the incoming gradient alone, which rarely depends on the student.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("pair_wise has no second derivative: call backward without create_graph")
