"""Pearson features (PKD): the channels of the student's feature correlate with the teacher's."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses._checks import check_choice, check_mask, full_precision
from densekd.losses._masked import check_widths, fill, mean_of_pixels, moments_over_ranks
from densekd.losses.wants import Wants
from densekd.ops.collectives import is_joined

CONVENTIONS = ("paper", "mmrazor")

# Added to a channel's variance inside the root: a channel that is constant becomes 0 and not NaN.
EPS = 1e-8


def pearson_features(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, convention: str = "paper"
) -> Tensor:
    r"""Half the mean squared difference of two features, each channel of which has mean 0 and variance 1.

    .. math:: \frac{1}{2 |V| C} \sum_{i \in V} \sum_c (\hat f^s_{ic} - \hat f^t_{ic})^2
        = \frac{1}{C} \sum_c (1 - \rho_c), \quad \hat f_{ic} = (f_{ic} - \mu_c) / \sigma_c

    with mean, deviation and Pearson's correlation ρ over all valid places of the batch. Cao et al., *PKD: General
    Distillation Framework for Object Detectors via Pearson Correlation Coefficient* (NeurIPS 2022).
    A student need not copy the scale of the teacher's features, which lets a detector of one kind teach another.

    ========= ==================================================================== ====================
    name      deviation                                                            from
    ========= ==================================================================== ====================
    paper     √(mean square + 1e-8), of the places                                 the equation
    mmrazor   unbiased, and 1e-6 outside the root: (M − 1) / M times, M = \|V\|        mmrazor, PKD's code
    ========= ==================================================================== ====================

    A channel that is constant in both contributes 0, in one of them ½. ``"paper"`` depends neither on the batch's
    size nor on the map's. Memory is linear in pixels. Within
    `densekd.ops.collectives.over_ranks` the batch is that of all ranks.

    Args:
        student: (N, C, h, w), after a 1x1 convolution where the widths differ.
        teacher: (N, C, h, w); receives no gradient.
        mask: (N, h, w) bool, True where a place counts.
        convention: whose deviation.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no place is valid.

    Raises:
        ValueError: the shapes do not fit, or the convention is unknown.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 64, 16, 16, requires_grad=True)
        >>> pearson_features(student, torch.randn(2, 64, 16, 16)).backward()
    """
    check_choice("convention", convention, CONVENTIONS)
    check_widths(student, teacher)
    check_mask(mask, student)
    s, t = full_precision(student), full_precision(teacher.detach())
    if is_joined():
        return _over_ranks(s, t, mask, convention)
    s, t = _standardised(s, mask, convention), _standardised(t, mask, convention)
    return mean_of_pixels((s - t).square().mean(dim=1), mask) / 2


def _over_ranks(s: Tensor, t: Tensor, mask: Tensor | None, convention: str) -> Tensor:
    """The same of the places of all ranks, as a function of sums alone."""
    a, b = (fill(x, mask).movedim(1, 0).flatten(1) for x in (s, t))
    valid = None if mask is None else mask.flatten()
    places, (of_a, of_b, products) = moments_over_ranks(a, b, valid)
    one, other = (_per_deviation(squares, places, convention) for squares in (of_a, of_b))
    squares = of_a * one.square() + of_b * other.square() - 2 * products * one * other
    return (squares.mean() / places / 2).to(s.dtype)


def _per_deviation(squares: Tensor, places: Tensor | int, convention: str) -> Tensor:
    """One over the deviation of a channel, whose squares about its mean sum to this."""
    if convention == "paper":
        return (squares / places + EPS).rsqrt()
    degrees: Tensor | int = (
        max(places - 1, 1) if isinstance(places, int) else (places - 1).clamp(min=1)
    )
    # Differs from mmrazor's code: 1e-12 inside the root, where its gradient at a constant channel is NaN.
    return 1 / ((squares / degrees + 1e-12).sqrt() + 1e-6)


def _standardised(x: Tensor, mask: Tensor | None, convention: str) -> Tensor:
    """(N, C, h, w) with mean 0 and variance 1 of each channel over the valid places of the batch."""
    x = fill(x, mask)
    n, _, h, w = x.shape
    places: Tensor | int = n * h * w if mask is None else mask.sum().clamp(min=1)
    x = fill(x - x.sum(dim=(0, 2, 3), keepdim=True) / places, mask)
    squares = x.square().sum(dim=(0, 2, 3), keepdim=True)
    return x * _per_deviation(squares, places, convention)


class PearsonFeatures(nn.Module):
    """`pearson_features` with its arguments stored.

    Attributes:
        wants: asks for a learned 1x1 convolution on the student's feature, to the teacher's width.
    """

    wants = Wants(adapter=True)

    def __init__(self, *, convention: str = "paper") -> None:
        super().__init__()
        check_choice("convention", convention, CONVENTIONS)
        self.convention = convention

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return pearson_features(student, teacher, mask=mask, convention=self.convention)

    def extra_repr(self) -> str:
        return f"convention={self.convention!r}"
