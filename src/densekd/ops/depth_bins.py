"""Depth as classes: bins of equal width in log depth, and the way back by a weighted sum.

Source: Cao et al., *Estimating Depth from Monocular Images as Classification Using Deep Fully Convolutional Residual
Networks* (2017), and the code of Yin et al. (VNL, ICCV 2019). Differs from the latter in one place: a depth belongs to
the bin that it lies in, so that a centre maps to its own bin. There ``round`` stands for ``floor``, and depth and
centre are half a bin apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DepthRange = tuple[float, float]


def check_range(depth_range: DepthRange, bins: int = 2) -> None:
    """Raise ValueError unless 0 < nearest < farthest and the number of bins is large enough."""
    low, high = depth_range
    if not 0 < low < high or math.isinf(high):
        raise ValueError(
            f"depth_range is ({low}, {high}); expected 0 < nearest < farthest, in metres, as in (0.5, 10)"
        )
    if bins < 2:
        raise ValueError(f"{bins} depth bins leave nothing to choose: expected at least 2")


def bin_edges(bins: int, depth_range: DepthRange, device: torch.device | str = "cpu") -> Tensor:
    """(bins + 1,) float32 metres, from nearest to farthest."""
    check_range(depth_range, bins)
    low, high = (math.log(v) for v in depth_range)
    return torch.linspace(low, high, bins + 1, dtype=torch.float64).exp().float().to(device)


def log_centres(bins: int, depth_range: DepthRange, device: torch.device | str = "cpu") -> Tensor:
    """(bins,) float32: the middle of each bin in log metres."""
    check_range(depth_range, bins)
    low, high = (math.log(v) for v in depth_range)
    half = (high - low) / (2 * bins)
    return torch.linspace(low + half, high - half, bins, dtype=torch.float64).float().to(device)


def bin_centres(bins: int, depth_range: DepthRange, device: torch.device | str = "cpu") -> Tensor:
    """(bins,) float32 metres: the geometric mean of each bin's edges."""
    return log_centres(bins, depth_range, device).exp()


def depth_to_bins(depth: Tensor, bins: int, depth_range: DepthRange) -> Tensor:
    """Metres of any shape -> int64 bin indices. Beyond the range: the nearest bin; the caller masks what is invalid."""
    check_range(depth_range, bins)
    low, high = (math.log(v) for v in depth_range)
    place = (depth.float().clamp(*depth_range).log() - low) * (bins / (high - low))
    return place.floor().long().clamp(0, bins - 1)


def bins_to_depth(logits: Tensor, depth_range: DepthRange) -> Tensor:
    """Bin logits (N, B, h, w) -> metres (N, 1, h, w): exp of the mean log centre under the softmax (VNL).

    float32 for half precision.

    Never quite reaches the ends of the range: the outermost centres are half a bin inside.
    """
    centres = log_centres(logits.shape[1], depth_range, logits.device)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return (logits.softmax(1) * centres[:, None, None]).sum(1, keepdim=True).exp()
