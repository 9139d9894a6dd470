"""FitNet's hint: the student's feature equals the teacher's."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses.feature_mimic import feature_mimic
from densekd.losses.wants import Wants


def fitnet(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Mean squared difference of two features of one width.

    .. math:: \frac{1}{|V| C} \sum_{i \in V} \sum_c (f^s_{ic} - f^t_{ic})^2

    Romero et al., *FitNets: Hints for Thin Deep Nets* (ICLR 2015), equation 3 up to its factor ½ and the mean; CIRKD
    and mmrazor have the mean too. It is `feature_mimic` without weights, under the field's name: that one asks for
    the teacher's confidence in a recipe, this one weighs all places alike. The value depends neither on the batch's
    size nor on the map's, but on the scale of the features.

    Args:
        student: (N, C, h, w), after a 1x1 convolution where the widths differ.
        teacher: (N, C, h, w); receives no gradient.
        mask: (N, h, w) bool, True where a place counts.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no place is valid.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 64, 16, 16, requires_grad=True)
        >>> fitnet(student, torch.randn(2, 64, 16, 16)).backward()
    """
    return feature_mimic(student, teacher, mask=mask)


class FitNet(nn.Module):
    """`fitnet` as a module.

    Attributes:
        wants: asks for a learned 1x1 convolution on the student's feature, to the teacher's width.
    """

    wants = Wants(adapter=True)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return fitnet(student, teacher, mask=mask)
