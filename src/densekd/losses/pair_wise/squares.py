"""Sums of squared differences of two affinity graphs, without a large n×n matrix in memory.

Letters: N images, C channels, a grid of p×q nodes, n = p·q, r rows of the n×n matrix at a time. Nodes come as pooled,
not normed; one that is not valid is zero, and so are all its cosines.

`gram_squares`: cosines of all nodes, from C×C products. `row_squares`: whatever else, from rows of the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Numbers in a slice's largest tensor: near a CPU's cache; on a GPU enough to keep it busy.
_GRAM_SLICE = {"cpu": 2**17}
_ROW_SLICE = {"cpu": 2**21}
_GPU_SLICE = 2**24
# Rows that are enough for a product of matrices. More of them at a time waste work: on what lies below the diagonal
# block, or outside of a window.
_ENOUGH = {"cpu": 128}
_GPU_ENOUGH = 2048
# What a float64 product costs in float32 ones. On GPUs but these it is 32 to 64 times.
_FLOAT64_PRICE = {"cpu": 2}
_GPU_FLOAT64_PRICE = 64
_FLOAT64_GPUS = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}  # P100, V100, A100, H100, B200
# A node shorter than this has no direction and is not normed: its cosines are (nearly) 0, its gradient is finite.
_ZERO_NORM = 1e-8


def squared_differences(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    window: tuple[int, int] | None,
    affinity: str,
    norm_gradient: bool,
) -> Tensor:
    """Sum over an image's edges of the squared difference of two affinities, in the form that costs least.

    Args:
        student: nodes (N, C, p, q).
        teacher: nodes (N, C', p, q); receives no gradient.
        valid: (N, 1, p, q) bool, None for all. Nodes that are not valid must be zero.
        window: height and width in nodes, both odd; None for all nodes.
        affinity: ``"cosine"``, ``"sigmoid"``, ``"softmax"``.
        norm_gradient: whether the gradient passes through the norms.

    Returns:
        (N,).
    """
    if window is None and affinity == "cosine" and gram_pays(student, teacher):
        return gram_squares(student, teacher, norm_gradient)
    return row_squares(student, teacher, valid, window, affinity, norm_gradient)


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


def _norm(x: Tensor, norm_gradient: bool) -> Tensor:
    """Each node's L2 norm, (N, 1, ...). That of a zero node is 1: it stays zero and gets a finite gradient."""
    square = x.square().sum(dim=1, keepdim=True)
    norm = torch.where(square > _ZERO_NORM**2, square, 1.0).sqrt()
    # As the authors have it. Differs from their code for a zero node, whose gradient is 1e8 times larger there.
    return norm if norm_gradient else norm.detach() + 1e-8


def _through_norm(grad: Tensor, unit: Tensor, norm: Tensor, norm_gradient: bool) -> Tensor:
    """In place: the gradient with respect to x from that with respect to unit = x / norm."""
    if norm_gradient:
        along = (unit * grad).sum(dim=1, keepdim=True)
        grad.addcmul_(unit, along, value=-1)
    return grad.div_(norm)


def _refuse_second_derivative() -> None:
    # PyTorch's once_differentiable looks at the incoming gradient alone, which rarely depends on the student.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("pair_wise has no second derivative: call backward without create_graph")


# Products of channels


def gram_pays(student: Tensor, teacher: Tensor) -> bool:
    """Whether C×C products cost less than rows of the n×n matrix: multiplications per node, forward and backward."""
    s, t = student.shape[1], teacher.shape[1]
    nodes = student.shape[-2] * student.shape[-1]
    dtype = _gram_dtype(student, teacher)
    if dtype is None:
        return False
    price = 1 if dtype == student.dtype else _float64_price(student.device)
    return price * (2 * s * s + 2 * s * t + t * t) <= nodes * (3 * s + t) / 2


def _float64_price(device: torch.device) -> int:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) in _FLOAT64_GPUS:
        return 2
    return _FLOAT64_PRICE.get(device.type, _GPU_FLOAT64_PRICE)


def _gram_dtype(student: Tensor, teacher: Tensor) -> torch.dtype | None:
    """Of the C×C products; None where the device has none that serves."""
    kind = student.device.type
    equal = student.shape[1] == teacher.shape[1]
    if kind == "mps":
        return student.dtype if equal else None
    if equal and _float64_price(student.device) > 2:
        return student.dtype
    return torch.float64


def gram_squares(student: Tensor, teacher: Tensor, norm_gradient: bool) -> Tensor:
    """Of the cosines of all nodes (N, C, p, q)."""
    return _GramSquares.apply(student.flatten(2), teacher.flatten(2), norm_gradient)


class _GramSquares(torch.autograd.Function):
    """‖SᵀS − TᵀT‖² of unit nodes S (N, C, n) and T (N, C', n), from products no larger than C×C.

    ‖·‖² is the sum of the squared entries, tr(YᵀY), and tr(YZ) = tr(ZY). This gives the plain expansion

        ‖SᵀS − TᵀT‖² = ‖P‖² − 2 ‖R‖² + ‖Q‖²   with   P = SSᵀ, R = STᵀ, Q = TTᵀ,

    a small difference of large numbers where the two graphs are alike. With equal widths there is a form that keeps
    its digits in any precision when S ≈ T: for D = S − T and X = S + T

        SᵀS − TᵀT = ½ (DᵀX + XᵀD)
        ‖SᵀS − TᵀT‖² = ½ (tr(DDᵀ XXᵀ) + tr(XDᵀ XDᵀ)) = ½ (⟨A, B⟩ + ⟨E, Eᵀ⟩)   with   A = DDᵀ, B = XXᵀ, E = XDᵀ.

    It, too, cancels where the graphs are alike but the nodes are not (T is S, rotated). So both forms are summed in
    float64, the second in float32 where float64 is dear (see `_gram_dtype`).

    The gradient with respect to S is 4 S (SᵀS − TᵀT), that is

        4 (P S − R T)   or   2 S (DᵀX + XᵀD) = (E + A) X + (B + Eᵀ) D,   since 2 S = X + D.

    Nodes are normed, and enter, a slice at a time, in backward once more. What is kept is the nodes as given and C×C
    products; autograd would keep every map of the way and take more than twice the products.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, norm_gradient: bool) -> Tensor:
        a, b, e = _gram_products(student, teacher, norm_gradient)
        ctx.norm_gradient = norm_gradient
        ctx.save_for_backward(student, teacher, a, b, e)
        if student.shape[1] == teacher.shape[1]:
            squares = (a * b + e * e.mT).sum(dim=(1, 2)) / 2
        else:
            squares = a.square().sum(dim=(1, 2)) + b.square().sum(dim=(1, 2))
            squares = squares - 2 * e.square().sum(dim=(1, 2))
        return squares.clamp(min=0).to(student.dtype)  # rounding may take a zero below it

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore[bad-override]
        _refuse_second_derivative()
        student, teacher, a, b, e = ctx.saved_tensors
        equal = student.shape[1] == teacher.shape[1]
        left, right = (b + e.mT, e + a) if equal else (4 * a, -4 * e.mT)
        grad = grad[:, None, None].to(a.dtype)
        left, right = grad * left, grad * right
        return _gram_gradient(student, teacher, left, right, ctx.norm_gradient), None, None


# The loops are operators for torch.compile, which would unroll them and keep what they drop.
@torch.library.custom_op(
    "densekd::pair_wise_products",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, bool norm_gradient) -> (Tensor, Tensor, Tensor)",
)
def _gram_products(
    student: Tensor, teacher: Tensor, norm_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """DDᵀ, XXᵀ and XDᵀ of equal widths, else SSᵀ, TTᵀ and TSᵀ."""
    a, b, e = _empty_products(student, teacher)
    for out in (a, b, e):
        out.zero_()
    for *_, s, t in _gram_slices(student, teacher, a.dtype, norm_gradient):
        a.baddbmm_(s, s.mT)
        b.baddbmm_(t, t.mT)
        e.baddbmm_(t, s.mT)
    return a, b, e


def _empty_products(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (n, s, _), t, dtype = student.shape, teacher.shape[1], _gram_dtype(student, teacher)
    a, b, e = (student.new_empty(n, *size, dtype=dtype) for size in ((s, s), (t, t), (t, s)))
    return a, b, e


@_gram_products.register_fake
def _(student: Tensor, teacher: Tensor, norm_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_products(student, teacher)


@torch.library.custom_op(
    "densekd::pair_wise_gradient",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, Tensor left, Tensor right, bool norm_gradient) -> Tensor",
)
def _gram_gradient(
    student: Tensor, teacher: Tensor, left: Tensor, right: Tensor, norm_gradient: bool
) -> Tensor:
    """left D + right X of equal widths, else left S + right T, and on through the norms: (N, C, n)."""
    out = torch.empty_like(student)
    begin = 0
    for unit, norm, s, t in _gram_slices(student, teacher, left.dtype, norm_gradient):
        part = torch.baddbmm(left @ s, right, t)
        end = begin + part.shape[2]
        out[..., begin:end] = _through_norm(part, unit, norm, norm_gradient)
        begin = end
    return out


@_gram_gradient.register_fake
def _(student: Tensor, teacher: Tensor, left: Tensor, right: Tensor, norm_gradient: bool) -> Tensor:
    return torch.empty_like(student)


def _gram_slices(
    student: Tensor, teacher: Tensor, dtype: torch.dtype, norm_gradient: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A few nodes at a time: S and its norms, then (D, X) of equal widths, else (S, T)."""
    equal = student.shape[1] == teacher.shape[1]
    room = _GRAM_SLICE.get(student.device.type, _GPU_SLICE)
    size = max(256, room // (student.shape[0] * max(student.shape[1], teacher.shape[1])))
    for s, t in zip(student.split(size, dim=2), teacher.split(size, dim=2), strict=True):
        s, t = s.to(dtype), t.to(dtype)
        norm = _norm(s, norm_gradient)
        s, t = s / norm, t / _norm(t, norm_gradient)
        yield (s, norm, s - t, s + t) if equal else (s, norm, s, t)


# Rows of the matrix


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
        _refuse_second_derivative()
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
    norm = _norm(student, norm_gradient)
    s, t = student / norm, teacher / _norm(teacher, norm_gradient)
    gradient = torch.zeros_like(s) if differentiate else None
    if affinity == "softmax":
        squares = _whole_rows(
            s, t, None if valid is None else valid.flatten(1), window, grid, gradient
        )
    else:
        squares = _half_rows(s, t, window, grid, affinity, gradient)
    if gradient is None:
        return squares, s.new_empty(0)
    return squares, _through_norm(gradient, s, norm, norm_gradient).unflatten(2, grid)


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
