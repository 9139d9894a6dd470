"""Squared differences of any two affinity graphs, from a few rows of the n×n matrix at a time.

Letters: N images, C channels, a grid of p×q nodes, n = p·q, r rows of the n×n matrix at a time. Nodes come as pooled,
not normed; one that is not valid is zero, and so are all its cosines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.losses.pair_wise.nodes import norm_of, refuse_second_derivative, through_norm

# Numbers in a slice's largest tensor: near a CPU's cache; on a GPU enough to keep it busy.
_ROW_SLICE = {"cpu": 2**21}
_GPU_SLICE = 2**24
# Rows that are enough for a product of matrices. More of them at a time waste work: on what lies below the diagonal
# block, or outside of a window.
_ENOUGH = {"cpu": 128}
_GPU_ENOUGH = 2048


def count_edges(valid: Tensor | None, window: tuple[int, int] | None, like: Tensor) -> Tensor:
    """How many edges each image of `like` (N, C, p, q) has: (N,) int64."""
    n, _, p, q = like.shape
    if window is None:
        full = torch.full((n,), p * q, device=like.device)
        return (full if valid is None else valid.sum(dim=(1, 2, 3))) ** 2
    here = like.new_ones(1, p, q) if valid is None else valid[:, 0].to(like.dtype)
    y, x = (~_far(size, w, like.device) for size, w in zip((p, q), window, strict=True))
    reached = y.to(here.dtype) @ here @ x.to(here.dtype)  # valid nodes in each one's window
    return (here * reached).long().sum(dim=(1, 2)).expand(n)


def _far(size: int, window: int, device: torch.device) -> Tensor:
    """Which places of one axis lie outside of the window around which: (size, size) bool."""
    place = torch.arange(size, device=device)
    return (place[:, None] - place).abs() > window // 2


def row_squares(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    window: tuple[int, int] | None,
    affinity: str,
    norm_gradient: bool,
) -> Tensor:
    return _RowSquares.apply(student, teacher, valid, window, affinity, norm_gradient)


class _RowSquares(torch.autograd.Function):
    """The n×n matrix a few rows at a time, each gone when the next begins: its part of the gradient is taken at once.

    Possible because the sum's own gradient is known before backward, up to one factor an image.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        valid: Tensor | None,
        window: tuple[int, int] | None,
        affinity: str,
        norm_gradient: bool,
    ) -> Tensor:
        squares, gradient = _rows(
            student, teacher, valid, window, affinity, norm_gradient, ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(gradient)
        return squares

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyrefly: ignore[bad-override]
        refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        return grad[:, None, None, None] * gradient, None, None, None, None, None


@torch.library.custom_op(
    "densekd::pair_wise_rows",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, Tensor? valid, int[]? window, str affinity, "
    "bool norm_gradient, bool differentiate) -> (Tensor, Tensor)",
)
def _rows(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    window: tuple[int, int] | None,
    affinity: str,
    norm_gradient: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """The sums (N,) and, if asked, their gradient (N, C, p, q), else an empty tensor."""
    grid = student.shape[-2:]
    student, teacher = student.flatten(2), teacher.flatten(2)
    norm = norm_of(student, norm_gradient)
    s, t = student / norm, teacher / norm_of(teacher, norm_gradient)
    gradient = torch.zeros_like(s) if differentiate else None
    if affinity == "softmax":
        squares = _whole_rows(
            s, t, None if valid is None else valid.flatten(1), window, grid, gradient
        )
    else:
        squares = _half_rows(s, t, window, grid, affinity, gradient)
    if gradient is None:
        return squares, s.new_empty(0)
    return squares, through_norm(gradient, s, norm, norm_gradient).unflatten(2, grid)


@_rows.register_fake
def _(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    window: tuple[int, int] | None,
    affinity: str,
    norm_gradient: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    gradient = torch.empty_like(student) if differentiate else student.new_empty(0)
    return student.new_empty(student.shape[0]), gradient


def _half_rows(
    s: Tensor,
    t: Tensor,
    window: tuple[int, int] | None,
    grid: torch.Size,
    affinity: str,
    gradient: Tensor | None,
) -> Tensor:
    """Cosine and sigmoid: the matrix is symmetric, so rows begin at their own diagonal block.

    Adds to `gradient` (N, C, n) with respect to unit nodes: 4 S G, G the difference times the affinity's slope.
    """
    images, _, n = s.shape
    squares = s.new_zeros(images)
    rooms = _rooms(s)
    enough = _ENOUGH.get(s.device.type, _GPU_ENOUGH)
    limit = max(enough, n // 8) if window is None else enough
    begin = 0
    while begin < n:
        width = n - begin  # at most
        if window is not None:
            width = min(width, enough + (window[0] // 2 + 1) * grid[1])
        end = min(n, begin + max(1, min(limit, rooms[0].numel() // (images * width))))
        stop = n if window is None else _reach(begin, end, window, grid)[1]
        rows, columns, r = slice(begin, end), slice(begin, stop), end - begin
        a, d = (room[: images * r * (stop - begin)].view(images, r, -1) for room in rooms)
        torch.bmm(s[..., rows].mT, s[..., columns], out=a)
        torch.bmm(t[..., rows].mT, t[..., columns], out=d)
        if affinity == "sigmoid":
            a.sigmoid_()
            d.sigmoid_()
        torch.sub(a, d, out=d)
        if window is not None:
            d.masked_fill_(_outside(rows, columns, window, grid, s.device), 0.0)
        squares += 2 * _sum_squares(d) - _sum_squares(d[..., :r])
        if gradient is not None:
            if affinity == "sigmoid":
                d.mul_(a.addcmul_(a, a, value=-1))  # σ' = σ − σ²
            gradient[..., rows].baddbmm_(s[..., columns], d.mT)
            gradient[..., end:stop].baddbmm_(s[..., rows], d[..., r:])
        begin = end
    if gradient is not None:
        gradient.mul_(4)
    return squares


def _whole_rows(
    s: Tensor,
    t: Tensor,
    valid: Tensor | None,
    window: tuple[int, int] | None,
    grid: torch.Size,
    gradient: Tensor | None,
) -> Tensor:
    """Softmax over the nodes that a node connects to. Adds to `gradient` (N, C, n) with respect to unit nodes."""
    images, _, n = s.shape
    squares = s.new_zeros(images)
    rooms = _rooms(s)
    limit, width = n, n
    if window is not None:
        limit = _ENOUGH.get(s.device.type, _GPU_ENOUGH)
        width = min(n, limit + 2 * (window[0] // 2 + 1) * grid[1])
    size = max(1, min(limit, rooms[0].numel() // (images * width)))
    for begin in range(0, n, size):
        end = min(n, begin + size)
        first, stop = (0, n) if window is None else _reach(begin, end, window, grid)
        rows, columns, r = slice(begin, end), slice(first, stop), end - begin
        a, d = (room[: images * r * (stop - first)].view(images, r, -1) for room in rooms)
        gone = None if window is None else _outside(rows, columns, window, grid, s.device)
        if valid is not None:
            invalid = ~valid[:, None, columns]
            gone = invalid if gone is None else gone | invalid
        for x, out in ((s, a), (t, d)):
            torch.bmm(x[..., rows].mT, x[..., columns], out=out)
            out.exp_()  # of a cosine: at most e
            if gone is not None:
                out.masked_fill_(gone, 0.0)
            out.div_(out.sum(dim=2, keepdim=True).clamp_(min=1e-30))  # 0 in a row without edges
        torch.sub(a, d, out=d)
        if valid is not None:
            d.masked_fill_(~valid[:, rows, None], 0.0)
        squares += _sum_squares(d)
        if gradient is not None:
            d.mul_(a)
            d.addcmul_(a, d.sum(dim=2, keepdim=True), value=-1)
            gradient[..., rows].baddbmm_(s[..., columns], d.mT)
            gradient[..., columns].baddbmm_(s[..., rows], d)
    if gradient is not None:
        gradient.mul_(2)
    return squares


def _rooms(s: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for two slices of the matrix, used for all of them: of one row or more."""
    images, _, n = s.shape
    numel = min(images * n * n, max(images * n, _ROW_SLICE.get(s.device.type, _GPU_SLICE)))
    return s.new_empty(numel), s.new_empty(numel)


def _sum_squares(d: Tensor) -> Tensor:
    """(N, r, columns) -> (N,), without a tensor of squares."""
    return torch.linalg.vector_norm(d, dim=2).square().sum(dim=1)


def _reach(begin: int, end: int, window: tuple[int, int], grid: torch.Size) -> tuple[int, int]:
    """The range of columns in which these rows' windows lie: whole rows of the grid."""
    q = grid[1]
    half = window[0] // 2
    return max(0, begin // q - half) * q, min(grid[0], (end - 1) // q + half + 1) * q


def _outside(
    rows: slice, columns: slice, window: tuple[int, int], grid: torch.Size, device: torch.device
) -> Tensor:
    """Which entries of these rows and columns of the n×n matrix are no edges: (1, r, columns) bool."""
    p, q = grid
    node = torch.arange(rows.start, rows.stop, device=device)
    first, last = columns.start // q, -(-columns.stop // q)  # the grid's rows that hold the columns
    y = _far(p, window[0], device)[node // q, first:last]
    x = _far(q, window[1], device)[node % q]
    far = (y[:, :, None] | x[:, None, :]).flatten(1)
    return far[None, :, columns.start - first * q : columns.stop - first * q]
