"""Masked generative distillation (MGD): the teacher's whole feature is regenerated from a part of the student's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from densekd.losses._checks import check_choice, check_mask, full_precision
from densekd.losses._masked import check_widths, fill, mean_of_pixels
from densekd.losses.wants import Wants
from densekd.ops.collectives import mean_over_ranks

CONVENTIONS = ("mean", "paper")


def masked_generative(
    student: Tensor,
    teacher: Tensor,
    regenerate: Callable[[Tensor], Tensor],
    *,
    mask_ratio: float = 0.75,
    kept: Tensor | None = None,
    mask: Tensor | None = None,
    convention: str = "mean",
) -> Tensor:
    r"""Squared difference of the teacher's feature and one regenerated from what is left of the student's.

    .. math:: \frac{1}{|V| C} \sum_{i \in V} \sum_c \big(G(k \cdot f^s)_{ic} - f^t_{ic}\big)^2

    k keeps each place with probability 1 − `mask_ratio`, all channels alike, and G is a small network that learns
    with the student. Yang et al., *Masked Generative Distillation* (ECCV 2022): a student that lets
    another restore the teacher's whole feature from a part of its own has to represent well, and need not copy. 0.75
    of the places are masked for segmentation, 0.65 for detection.

    ========= =================================================== ==========================================
    name      value                                               from
    ========= =================================================== ==========================================
    mean      mean over valid places and channels                 ours; other codes have the mean too
    paper     2e-5 · sum / N                                      the paper and its code, mmrazor
    ========= =================================================== ==========================================

    ``"paper"`` grows with the map and its width: it is 2e-5 · C · h · w times the mean (21 for 256 channels at
    64×64). ``"mean"`` depends neither on the batch's size nor on the map's, but on the scale of the features. Memory
    is linear in pixels.

    Args:
        student: (N, C, h, w), after a 1x1 convolution where the widths differ.
        teacher: (N, C, h, w); receives no gradient.
        regenerate: G, (N, C, h, w) -> (N, C, h, w).
        mask_ratio: the share of places that is masked, in [0, 1).
        kept: (N, h, w) bool, True where a place is not masked. None draws it from torch's generator.
        mask: (N, h, w) bool, True where a place counts. G sees 0 at the others.
        convention: whose normalisation.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no place is valid.

    Raises:
        ValueError: the shapes do not fit, or an argument is out of range.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 64, 16, 16, requires_grad=True)
        >>> generator = torch.nn.Conv2d(64, 64, 3, padding=1)
        >>> masked_generative(student, torch.randn(2, 64, 16, 16), generator).backward()
    """
    _check_arguments(mask_ratio, convention)
    check_widths(student, teacher)
    check_mask(mask, student)
    if kept is None:
        n, _, h, w = student.shape
        kept = torch.rand(n, h, w, device=student.device) >= mask_ratio
    else:
        check_mask(kept, student)
    seen = kept if mask is None else kept & mask
    made = regenerate(fill(student, seen))
    if made.shape != teacher.shape:
        raise ValueError(
            f"the generator made {tuple(made.shape)} of {tuple(student.shape)}; expected the teacher's "
            f"{tuple(teacher.shape)}: give it as many channels out as in, and a padding that keeps the size"
        )
    difference = fill(full_precision(made), mask) - fill(full_precision(teacher.detach()), mask)
    squares = difference.square()
    if convention == "paper":
        return mean_over_ranks(2e-5 * squares.sum(), student.shape[0])
    return mean_of_pixels(squares.mean(dim=1), mask)


def _check_arguments(mask_ratio: float, convention: str) -> None:
    check_choice("convention", convention, CONVENTIONS)
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}; it must be at least 0 and below 1")


class MaskedGenerative(nn.Module):
    """`masked_generative` with a generator of its own: two 3×3 convolutions with a ReLU between, as published.

    The generator has 18 · C² weights (4.7 million for 512 channels). It is trained with the student and not part of it.

    Attributes:
        wants: asks for a learned 1x1 convolution on the student's feature, to the teacher's width.
    """

    wants = Wants(adapter=True)

    def __init__(
        self, channels: int, *, mask_ratio: float = 0.75, convention: str = "mean"
    ) -> None:
        """Args: channels: the teacher's width; the rest as in `masked_generative`."""
        super().__init__()
        _check_arguments(mask_ratio, convention)
        if channels < 1:
            raise ValueError(
                f"channels is {channels}; it must be the width of the teacher's feature"
            )
        self.mask_ratio = mask_ratio
        self.convention = convention
        self.regenerate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return masked_generative(
            student,
            teacher,
            self.regenerate,
            mask_ratio=self.mask_ratio,
            mask=mask,
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        return f"mask_ratio={self.mask_ratio}, convention={self.convention!r}"
