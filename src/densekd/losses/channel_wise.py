"""Channel-wise distillation (CWD): each channel's map is a distribution over places, and the student's follows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import check_mask, check_positive, full_precision
from densekd.losses._masked import NEVER, check_widths, fill, mean_of_images


def channel_wise(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, mask: Tensor | None = None
) -> Tensor:
    r"""Kullback–Leibler divergence of each channel's distribution over the places of the map.

    .. math:: \frac{T^2}{N C} \sum_{n, c} \mathrm{KL}(p^t_{nc} \,\|\, p^s_{nc}), \quad
        p_{nc} = \mathrm{softmax}_{i \in V_n}(x_{nci} / T)

    Shu et al., *Channel-wise Knowledge Distillation for Dense Prediction* (ICCV 2021). The
    published code, mmrazor and CIRKD compute the same number. They use T = 4, and weight 3 on logits or 50 on
    features. The published code takes the logarithm of a softmax, which is minus infinity where a probability
    underflows; this function uses log_softmax.

    Where the other losses ask what a pixel is, this one asks where a class is. The value depends neither on the
    batch's size nor on the map's. Memory is linear in pixels.

    Args:
        student: logits or features (N, C, h, w), features after a 1x1 convolution where the widths differ.
        teacher: the same; receives no gradient.
        temperature: T > 0.
        mask: (N, h, w) bool, True where a place counts. The softmax runs over valid places alone, and an image
            without any drops out of the mean.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no place is valid.

    Raises:
        ValueError: the shapes do not fit, or the temperature is not above 0.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 19, 33, 41, requires_grad=True)
        >>> channel_wise(student, torch.randn(2, 19, 33, 41), temperature=4.0).backward()
    """
    check_positive("temperature", temperature)
    check_widths(student, teacher)
    check_mask(mask, student)
    log_s, log_t = (
        F.log_softmax(fill(full_precision(x) / temperature, mask, NEVER).flatten(2), dim=2)
        for x in (student, teacher.detach())
    )
    divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=2)  # (N, C)
    return temperature**2 * mean_of_images(divergence.mean(dim=1), mask)


class ChannelWise(nn.Module):
    """`channel_wise` with its arguments stored."""

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return channel_wise(student, teacher, temperature=self.temperature, mask=mask)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
