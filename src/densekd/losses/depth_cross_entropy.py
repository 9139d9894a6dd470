"""Cross-entropy over depth bins in which near misses count as partly right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.losses._checks import check_map, check_mask, check_positive, full_precision
from densekd.losses._depth_checks import count_is_at_hand, mean_or_zero, valid_pixels
from densekd.ops.depth_bins import DepthRange, check_range, depth_to_bins
from densekd.ops.resize import resize_map


def depth_cross_entropy(
    logits: Tensor,
    depth: Tensor,
    *,
    depth_range: DepthRange,
    mask: Tensor | None = None,
    sharpness: float = 0.2,
) -> Tensor:
    r"""Cross-entropy of bin distributions against a target that is spread around the true bin, mean over valid pixels.

    .. math:: -\frac{1}{|V|} \sum_{i \in V} \sum_b w_{b}(b_i) \log q_{ib}, \quad
        w_b(b_i) \propto e^{-\alpha (b - b_i)^2}, \quad \textstyle\sum_b w_b = 1

    Source: the weighted cross-entropy of Cao et al. (2017) and Yin et al. (VNL, ICCV 2019), α = 0.2 as in VNL's code.
    The weights sum to 1 for each true bin, as there; the papers write them without that. Differs from the code: bins as
    in `densekd.ops.depth_bins`. The smallest value is the entropy of the weights (1.88 for α = 0.2), not 0.

    Args:
        logits: (N, B, h, w), resized bilinearly (align_corners) to the depth where sizes differ.
        depth: (N, 1, H, W) metres; 0, NaN and what lies outside the range do not count.
        depth_range: (nearest, farthest) metres, cut into B bins.
        mask: (N, H, W) bool, True where a pixel counts. No valid pixel gives 0 with a graph.
        sharpness: α above 0, in bins to the power of -2. From about 20 on it is plain cross-entropy.

    Returns:
        A scalar, at least 0 (float32 for half-precision input).

    Raises:
        ValueError: shapes that do not fit, fewer than 2 bins, or arguments out of range.

    Example:
        >>> logits = torch.randn(2, 150, 12, 16, requires_grad=True)
        >>> depth = 1 + torch.rand(2, 1, 48, 64)
        >>> depth_cross_entropy(logits, depth, depth_range=(0.1, 10.0)).backward()
    """
    check_positive("sharpness", sharpness)
    check_map("logits", logits)
    check_map("depth", depth)
    n, bins = logits.shape[:2]
    check_range(depth_range, bins)
    if depth.shape[0] != n or depth.shape[1] != 1:
        raise ValueError(
            f"depth has shape {tuple(depth.shape)}; logits {tuple(logits.shape)} go with ({n}, 1, H, W)"
        )
    check_mask(mask, depth)
    low, high = depth_range
    valid = valid_pixels(depth, mask) & (depth[:, 0] >= low) & (depth[:, 0] <= high)
    logits = resize_map(full_precision(logits), depth.shape[-2:])
    scores, metres = logits.movedim(1, -1), depth[:, 0]  # (N, H, W, B) and (N, H, W)
    # What is invalid may hold anything, and must not reach the gradient.
    if count_is_at_hand(depth):
        scores, metres, valid = scores[valid], metres[valid], valid[valid]  # (M, B) and twice (M,)
    else:
        scores, metres = scores.where(valid[..., None], 0.0), metres.where(valid, low)
    log_q = scores.log_softmax(-1)
    weights = bin_weights(bins, sharpness, log_q)
    truth = depth_to_bins(metres, bins, depth_range)
    return mean_or_zero(-(weights[truth] * log_q).sum(-1), valid)


def bin_weights(bins: int, sharpness: float, like: Tensor) -> Tensor:
    """(B, B): row b is the target's distribution where the true bin is b; as `like` in dtype and device."""
    place = torch.arange(bins, dtype=like.dtype, device=like.device)
    return (-sharpness * (place[:, None] - place).square()).softmax(1)


class DepthCrossEntropy(nn.Module):
    """`depth_cross_entropy` with its arguments stored."""

    def __init__(self, *, depth_range: DepthRange, sharpness: float = 0.2) -> None:
        super().__init__()
        check_positive("sharpness", sharpness)
        self.depth_range = depth_range
        self.sharpness = sharpness

    def forward(self, logits: Tensor, depth: Tensor, mask: Tensor | None = None) -> Tensor:
        return depth_cross_entropy(
            logits,
            depth,
            depth_range=self.depth_range,
            mask=mask,
            sharpness=self.sharpness,
        )

    def extra_repr(self) -> str:
        return f"depth_range={self.depth_range}, sharpness={self.sharpness}"
