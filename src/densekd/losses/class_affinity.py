"""Affinity by class (KTAAD): for each class, which places belong to it together."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses._checks import check_choice, check_mask, check_pair, full_precision
from densekd.losses._masked import fill, mean_of_images, unit

ACTIVATIONS = ("softmax", "none")


def class_affinity(
    student: Tensor, teacher: Tensor, *, activation: str = "softmax", mask: Tensor | None = None
) -> Tensor:
    r"""Squared difference of two affinities between all places, one a class, without ever making them.

    .. math:: \frac{1}{N C} \sum_{n, c} \| u^s u^{s\top} - u^t u^{t\top} \|_F^2, \quad
        u_{nc} = p_{nc} / \|p_{nc}\| \in \mathbb{R}^{h w}

    The affinity of two places under class c is the product of what both have of it. He et al., *Knowledge Adaptation
    for Efficient Semantic Segmentation* (CVPR 2019, "KTAAD") compares affinities between all places, as cosines of
    feature vectors: that is `pair_wise` with granularity 1. Codes for segmentation apply it to each class's map for
    itself, with C matrices of (h · w)² numbers. An affinity of one channel has rank 1, so with d = uˢ − uᵗ and x = uˢ
    + uᵗ

    .. math:: \| u^s u^{s\top} - u^t u^{t\top} \|_F^2 = \tfrac{1}{2} (\|d\|^2 \|x\|^2 + (d^\top x)^2)

    is the same number: **memory and work are linear in pixels**, C · h · w. The sum over pairs of places lies between
    0 and 2, and depends neither on the batch's size nor on the map's (a mean over pairs would be (h · w)² times
    smaller).

    Args:
        student: logits (N, C, h, w).
        teacher: the same; receives no gradient.
        activation: ``"softmax"`` makes probabilities of the logits, with C > 1. ``"none"`` takes maps as they are,
            features of one width for instance: a map and its negative then have one affinity.
        mask: (N, h, w) bool, True where a pixel counts. The others have no affinity, and an image without
            valid pixels drops out of the mean.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no pixel is valid.

    Raises:
        ValueError: the shapes do not fit, or the activation does not.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 19, 33, 41, requires_grad=True)
        >>> class_affinity(student, torch.randn(2, 19, 33, 41)).backward()
    """
    check_choice("activation", activation, ACTIVATIONS)
    check_pair(student, teacher, same_channels=True)
    check_mask(mask, student)
    if activation == "softmax" and student.shape[1] == 1:
        raise ValueError(
            "a softmax over one channel is 1 everywhere: take activation 'none', or at least two classes"
        )
    s, t = (_directions(x, activation, mask) for x in (student, teacher.detach()))
    d, x = s - t, s + t
    squares = (d.square().sum(2) * x.square().sum(2) + (d * x).sum(2).square()) / 2  # (N, C)
    return mean_of_images(squares.mean(dim=1), mask)


def _directions(x: Tensor, activation: str, mask: Tensor | None) -> Tensor:
    """(N, C, h, w) -> (N, C, h·w), each channel's map at length 1."""
    x = full_precision(x)
    if activation == "softmax":
        x = fill(x, mask).softmax(
            dim=1
        )  # filled first: what is masked may be NaN, which no mask takes out later
    return unit(fill(x, mask).flatten(2), dim=2)


class ClassAffinity(nn.Module):
    """`class_affinity` with its arguments stored."""

    def __init__(self, *, activation: str = "softmax") -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        self.activation = activation

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return class_affinity(student, teacher, activation=self.activation, mask=mask)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}"
