"""Squared differences of the cosines of all nodes, from products of channels: no n×n matrix is made.

Letters: N images, C channels, n nodes. Nodes come as pooled, not normed; one that is not valid is zero, and so are all
its cosines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from densekd.losses.pair_wise.nodes import norm_of, refuse_second_derivative, through_norm

# Numbers in a slice's largest tensor: near a CPU's cache; on a GPU enough to keep it busy.
_GRAM_SLICE = {"cpu": 2**17}
_GPU_SLICE = 2**24
# What a float64 product costs in float32 ones. On GPUs but these it is 32 to 64 times.
_FLOAT64_PRICE = {"cpu": 2}
_GPU_FLOAT64_PRICE = 64
_FLOAT64_GPUS = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}  # P100, V100, A100, H100, B200


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
        refuse_second_derivative()
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
        out[..., begin:end] = through_norm(part, unit, norm, norm_gradient)
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
        norm = norm_of(s, norm_gradient)
        s, t = s / norm, t / norm_of(t, norm_gradient)
        yield (s, norm, s - t, s + t) if equal else (s, norm, s, t)
