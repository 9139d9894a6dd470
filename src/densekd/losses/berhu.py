"""Reversed Huber loss: absolute for small errors, squared for large ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.losses._checks import check_positive
from densekd.losses._depth_checks import mean_or_zero, valid_values
from densekd.ops.collectives import max_over_ranks


def berhu(
    prediction: Tensor, target: Tensor, *, mask: Tensor | None = None, threshold: float = 0.2
) -> Tensor:
    r"""Mean of |e| where |e| is at most c, and of (e² + c²) / 2c above it; c = threshold · max |e| of the batch.

    Source: Laina et al., *Deeper Depth Prediction with Fully Convolutional Residual Networks* (3DV 2016), eq. 1–2,
    where the threshold is 1/5. c receives no gradient.

    Args:
        prediction: (N, 1, H, W) metres.
        target: (N, 1, H, W) metres; 0 and NaN do not count.
        mask: (N, H, W) bool, True where a pixel counts. No valid pixel gives 0 with a graph.
        threshold: of the largest error, above 0; from 1 on it is the mean absolute error.

    Returns:
        A scalar in metres, at least the mean absolute error (float32 for half-precision input).
    """
    check_positive("threshold", threshold)
    p, t, valid = valid_values(prediction, target, mask, positive=False)
    error = (p - t).abs()  # 0 where a pixel does not count
    largest = error.detach().max() if error.numel() else error.detach().sum()
    # At no error at all c is 0, and 0 / 0 must not reach the gradient.
    c = (threshold * max_over_ranks(largest)).clamp(min=torch.finfo(error.dtype).tiny ** 0.5)
    return mean_or_zero(torch.where(error <= c, error, (error.square() + c * c) / (2 * c)), valid)


class BerHu(nn.Module):
    """`berhu` with its argument stored."""

    def __init__(self, *, threshold: float = 0.2) -> None:
        super().__init__()
        check_positive("threshold", threshold)
        self.threshold = threshold

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return berhu(prediction, target, mask=mask, threshold=self.threshold)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"
