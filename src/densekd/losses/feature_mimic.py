"""Feature mimic: the student's feature follows the teacher's where the teacher is confident."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.losses._checks import check_map, check_mask, check_pair, full_precision
from densekd.losses.wants import Wants
from densekd.ops.collectives import mean_over_ranks


def feature_mimic(
    student: Tensor, teacher: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    r"""Squared difference of two features, averaged over channels and, with weights, over places.

    .. math:: \frac{\sum_{i \in V} w_i \frac{1}{C} \sum_c (f^s_{ic} - f^t_{ic})^2}{\sum_{i \in V} w_i}

    With w the teacher's highest class score this is the optional term of the paper's authors for detectors, applied to
    each level of the pyramid: most places of an image hold no object, and their features need not be copied. Without
    weights it is FitNet's hint. The value depends neither on the batch's size nor on the map's,
    but on the scale of the features: a pyramid's are not normalised, and differences of 100 and more are usual, so that
    weights of 0.001 to 0.01 put the term beside a detector's own losses.

    Args:
        student: (N, C, h, w), after a 1x1 convolution where the widths differ.
        teacher: (N, C, h, w); receives no gradient.
        weight: (N, 1, h, w), at least 0, for instance the teacher's confidence; None weighs all places alike. Receives
            no gradient.
        mask: (N, h, w) bool, True where a place counts.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where the weights sum to nothing.

    Raises:
        ValueError: shapes that do not go together.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 64, 16, 16, requires_grad=True)
        >>> feature_mimic(student, torch.randn(2, 64, 16, 16), weight=torch.rand(2, 1, 16, 16)).backward()
    """
    check_map("student", student)
    check_map("teacher", teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student has {student.shape[1]} channels and teacher {teacher.shape[1]}: put a 1x1 convolution "
            "on the student's feature first"
        )
    check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)
    n, _, h, w = student.shape
    if weight is not None and tuple(weight.shape) != (n, 1, h, w):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected {(n, 1, h, w)}, one a place of the feature: resize it "
            "with densekd.ops.resize.resize_map"
        )
    difference = full_precision(student) - full_precision(teacher.detach())
    if mask is not None:
        # Chosen, not multiplied, and before the square: what is masked may be infinite, and its gradient is 0. Unlike
        # masked_fill, where keeps the memory format, on which the last bit of the mean over channels depends.
        difference = torch.where(mask[:, None], difference, 0.0)
    per_place = difference.square().mean(dim=1)  # (N, h, w)
    if weight is None:
        weight = per_place.new_ones(n, 1, h, w)
    weights = weight.detach()[:, 0].to(per_place.dtype)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return mean_over_ranks((weights * per_place).sum(), weights.sum())


class FeatureMimic(nn.Module):
    """`feature_mimic` as a module."""

    wants = Wants(adapter=True, confidence=True)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        return feature_mimic(student, teacher, weight=weight, mask=mask)
