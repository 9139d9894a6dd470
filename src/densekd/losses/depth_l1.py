"""Mean absolute error of depth."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses._depth_checks import mean_or_zero, valid_values


def depth_l1(prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean of |prediction - target| over the valid pixels, in metres.

    Args:
        prediction: (N, 1, H, W) metres.
        target: (N, 1, H, W) metres; 0 and NaN do not count.
        mask: (N, H, W) bool, True where a pixel counts. No valid pixel gives 0 with a graph.

    Returns:
        A scalar, at least 0 (float32 for half-precision input).
    """
    p, t, valid = valid_values(prediction, target, mask, positive=False)
    return mean_or_zero((p - t).abs(), valid)


class DepthL1(nn.Module):
    """`depth_l1` as a module."""

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return depth_l1(prediction, target, mask=mask)
