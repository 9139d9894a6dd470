"""Attention transfer (AT): the student is active where the teacher is active."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses._checks import check_choice, check_mask, check_pair, full_precision
from densekd.losses._masked import fill, mean_of_images, unit

CONVENTIONS = ("paper", "cirkd")


def attention_transfer(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, convention: str = "paper"
) -> Tensor:
    r"""Squared distance of two maps of activity, each of length 1.

    .. math:: \frac{1}{N} \sum_n \Big\| \frac{a^s_n}{\|a^s_n\|} - \frac{a^t_n}{\|a^t_n\|} \Big\|^2, \quad
        a_{ni} = \frac{1}{C} \sum_c f_{nci}^2

    Zagoruyko & Komodakis, *Paying More Attention to Attention* (ICLR 2017), equation 2 with p = 2. The paper writes the
    norm; its published code squares it, and so does this function. Two maps of activity are never negative, so
    the value lies between 0 and 2.

    ========= ================================================= ========================================
    name      value                                             from
    ========= ================================================= ========================================
    paper     the sum over places, mean over images             the equation, squared
    cirkd     that, divided by h · w                            the paper's published code, CIRKD
    ========= ================================================= ========================================

    ``"paper"`` depends neither on the batch's size nor on the map's, and weights of 1 to 100 are usual. ``"cirkd"``
    shrinks as the map grows: its weight is 10⁴. Memory is linear in pixels.

    Args:
        student: (N, C, h, w).
        teacher: (N, C', h, w); the widths may differ. It receives no gradient.
        mask: (N, h, w) bool, True where a place counts. The others have no activity, and an image without
            valid places drops out of the mean.
        convention: whose normalisation.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no place is valid.

    Raises:
        ValueError: the shapes do not fit, or the convention is unknown.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 64, 16, 16, requires_grad=True)
        >>> attention_transfer(student, torch.randn(2, 256, 16, 16)).backward()
    """
    check_choice("convention", convention, CONVENTIONS)
    check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)
    s, t = (
        _activity(full_precision(student), mask),
        _activity(full_precision(teacher.detach()), mask),
    )
    value = mean_of_images((s - t.to(s.dtype)).square().sum(dim=1), mask)
    return value if convention == "paper" else value / (student.shape[-2] * student.shape[-1])


def _activity(x: Tensor, mask: Tensor | None) -> Tensor:
    """(N, C, h, w) -> (N, h·w) of length 1."""
    x = fill(x, mask)
    # The direction does not depend on the scale, which may be taken off without a gradient: an eps then means the
    # same for features of any size, and fourth powers do not underflow.
    scale = x.detach().square().mean(dim=(1, 2, 3), keepdim=True)
    x = x * (scale + (scale == 0)).rsqrt()
    return unit(x.square().mean(dim=1).flatten(1), dim=1)


class AttentionTransfer(nn.Module):
    """`attention_transfer` with its arguments stored."""

    def __init__(self, *, convention: str = "paper") -> None:
        super().__init__()
        check_choice("convention", convention, CONVENTIONS)
        self.convention = convention

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return attention_transfer(student, teacher, mask=mask, convention=self.convention)

    def extra_repr(self) -> str:
        return f"convention={self.convention!r}"
