"""Similarity preserving (SPKD): images that are alike to the teacher are alike to the student."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses._checks import (
    check_choice,
    check_mask,
    check_pair,
    full_precision,
    no_autocast,
)
from densekd.losses._masked import fill, unit

CONVENTIONS = ("mean", "paper")


def similarity_preserving(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, convention: str = "mean"
) -> Tensor:
    r"""Squared difference of the rows of two matrices of similarity between the images of the batch.

    .. math:: \frac{1}{B} \sum_{i} \| \tilde g^s_i - \tilde g^t_i \|^2, \quad
        \tilde g_i = g_i / \|g_i\|, \quad g_{ij} = \langle f_i, f_j \rangle

    with a row for each of the B images of the batch. Tung & Mori, *Similarity-Preserving Knowledge Distillation*
    (ICCV 2019), equation 4.

    ========= ======================================== ================================================
    name      value                                    from
    ========= ======================================== ================================================
    mean      the mean over rows, as above             ours: doubling the batch changes nothing
    paper     that, divided by B: all squares / B²     the paper's equation 4
    ========= ======================================== ================================================

    **It looks at whole images and compares them with each other**, so it says little for dense prediction with small
    batches: a batch of one image has one similarity, which is 1 whatever the networks say. That is an error here,
    since the gradient would be 0 without a word. The value does not depend on the map's size. Memory: features, and B
    × B similarities.

    Args:
        student: (N, C, h, w) with N > 1.
        teacher: (N, C', h, w); the widths may differ. It receives no gradient.
        mask: (N, h, w) bool, True where a place counts; the others are 0. An image without valid places is no
            image of the batch.
        convention: whose normalisation.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no place is valid.

    Raises:
        ValueError: the shapes do not fit, the batch has one image, or the convention is unknown.

    Example:
        >>> import torch
        >>> student = torch.randn(4, 64, 16, 16, requires_grad=True)
        >>> similarity_preserving(student, torch.randn(4, 256, 16, 16)).backward()
    """
    check_choice("convention", convention, CONVENTIONS)
    check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)
    n = student.shape[0]
    if n == 1:
        raise ValueError(
            "a batch of one image has no similarities to compare: take a batch of at least 2 images a process, or "
            "pair_wise, which compares the places of one image"
        )
    with no_autocast(student):
        s = _rows(full_precision(student), mask)
        t = _rows(full_precision(teacher.detach()), mask).to(s.dtype)
    total = (s - t).square().sum()
    images = n if mask is None else mask.flatten(1).any(dim=1).sum().clamp(min=1)
    return total / images if convention == "mean" else total / images**2


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """(N, C, h, w) -> (N, N), each row of length 1, or 0 for an image of zeros."""
    x = fill(x, mask).flatten(1)
    # Rows do not depend on the scale of the features, which may be taken off without a gradient; an eps then means
    # the same for all.
    scale = x.detach().square().sum(dim=1).mean()
    x = x * (scale + (scale == 0)).rsqrt()
    return unit(x @ x.T, dim=1)


class SimilarityPreserving(nn.Module):
    """`similarity_preserving` with its arguments stored."""

    def __init__(self, *, convention: str = "mean") -> None:
        super().__init__()
        check_choice("convention", convention, CONVENTIONS)
        self.convention = convention

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return similarity_preserving(student, teacher, mask=mask, convention=self.convention)

    def extra_repr(self) -> str:
        return f"convention={self.convention!r}"
