"""Depth against a teacher that knows no scale and no shift: MiDaS, DPT, Depth Anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.losses._checks import check_choice, check_map, check_mask, full_precision
from densekd.ops.collectives import mean_over_ranks

FORMS = ("inverse", "depth")
ALIGNMENTS = ("median", "least_squares")
NEAREST = 0.01  # metres: nearer, the inverse would rule every mean and says nothing
_EPS = 1e-6  # a smaller spread, as a share of the largest value, is none: rounding has no scale to divide by


def ssi(
    student: Tensor,
    teacher: Tensor,
    *,
    mask: Tensor | None = None,
    form: str = "inverse",
    alignment: str = "median",
    trim: float = 0.2,
) -> Tensor:
    r"""Scale- and shift-invariant distance of a metric student from a relative teacher, the mean over images.

    With d the student's map in the teacher's form (1 / metres, or metres) and d* the teacher's, over M pixels:

    ============== ==================================================================================================
    alignment      value
    ============== ==================================================================================================
    median         1 / 2M · Σ |d̂ - d̂*| over all but the largest `trim` of the pixels' differences, where x̂ =
                   (x - median x) / mean |x - median x|
    least_squares  1 / 2M · Σ (s d + t - d*)² with the s and t that make it smallest; in the teacher's unit, squared
    ============== ==================================================================================================

    Source: Ranftl et al., *Towards Robust Monocular Depth Estimation* (MiDaS, TPAMI 2020), section 5: the trimmed
    absolute error with robust estimators (20 % trimmed), and the squared error with least squares (not trimmed).

    Args:
        student: (N, 1, H, W) metres. Depth below a centimetre counts as a centimetre with the form ``"inverse"``.
        teacher: (N, 1, H, W) in its own unit; NaN and infinity do not count. Receives no gradient.
        mask: (N, H, W) bool, True where a pixel counts. An image with fewer than two such pixels counts nothing.
        form: what the teacher gives: ``"inverse"`` depth, near is large (MiDaS and what follows it), or ``"depth"``.
        alignment: how scale and shift are taken out.
        trim: share of the pixels in [0, 1) whose differences are the largest and left out (median only).

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no pixel counts.

    Raises:
        ValueError: the shapes do not fit, or an argument is out of range.

    Example:
        >>> teacher = torch.rand(2, 1, 8, 8) + 0.1  # inverse depth in some unit
        >>> student = 1 / (3 * teacher + 2)  # the same scene in metres
        >>> round(ssi(student, teacher).item(), 4)
        0.0
    """
    _check_arguments(form, alignment, trim)
    for name, x in (("student", student), ("teacher", teacher)):
        check_map(name, x)
        if x.shape[1] != 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected depth (N, 1, H, W)")
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in size"
        )
    check_mask(mask, student)
    d, target = full_precision(student)[:, 0], full_precision(teacher.detach())[:, 0]
    valid = target.isfinite() if mask is None else target.isfinite() & mask
    values = [
        d[valid & ~valid].sum()
    ]  # the sum of nothing keeps a graph, and NaN of what does not count out of it
    for own, other, used in zip(d, target, valid, strict=True):
        x, y = own[used], other[used]
        if len(x) < 2:
            continue
        if form == "inverse":
            x = 1 / x.clamp(min=NEAREST)
        values.append(_trimmed(x, y, trim) if alignment == "median" else _squared(x, y))
    return mean_over_ranks(torch.stack(values).sum(), len(values) - 1)


def _trimmed(x: Tensor, y: Tensor, trim: float) -> Tensor:
    difference = (_robust(x) - _robust(y)).abs()
    kept = len(difference) - int(trim * len(difference))
    return difference.topk(kept, largest=False, sorted=False).values.sum() / (2 * len(difference))


def _robust(x: Tensor) -> Tensor:
    """Without shift (the median) and scale (the mean distance from it)."""
    centred = x - x.median()
    scale = centred.abs().mean()
    return centred / scale.where(scale > _EPS * x.detach().abs().max(), torch.ones_like(scale))


def _squared(x: Tensor, y: Tensor) -> Tensor:
    least = (_EPS * x.detach().abs().max()) ** 2
    x, y = x - x.mean(), y - y.mean()
    spread = x.square().mean()
    scale = (x * y).mean() / spread.where(spread > least, torch.ones_like(spread))
    return (scale * x - y).square().mean() / 2


def _check_arguments(form: str, alignment: str, trim: float) -> None:
    check_choice("form", form, FORMS)
    check_choice("alignment", alignment, ALIGNMENTS)
    if not 0 <= trim < 1:
        raise ValueError(f"trim is {trim}; expected a share in [0, 1)")


class SSI(nn.Module):
    """`ssi` with its arguments stored."""

    def __init__(
        self, *, form: str = "inverse", alignment: str = "median", trim: float = 0.2
    ) -> None:
        super().__init__()
        _check_arguments(form, alignment, trim)
        self.form = form
        self.alignment = alignment
        self.trim = trim

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return ssi(
            student,
            teacher,
            mask=mask,
            form=self.form,
            alignment=self.alignment,
            trim=self.trim,
        )

    def extra_repr(self) -> str:
        return f"form={self.form!r}, alignment={self.alignment!r}, trim={self.trim}"
