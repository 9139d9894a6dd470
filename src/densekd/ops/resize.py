"""The one place where align_corners is decided.

Everything of this package resizes maps bilinearly with ``align_corners=True``, as the paper's authors do for logits,
pyramid priors and the discriminator's image. (mmsegmentation and SMP use False; a map of a network trained there may
be handed in at full size instead.) Class labels and masks are resized by nearest neighbour on the same grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN_CORNERS = True


def resize_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear (N, C, h, w) -> (N, C, *size); the tensor itself where the size already fits."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=ALIGN_CORNERS)


def nearest_indices(source: int, target: int, device: torch.device | str = "cpu") -> Tensor:
    """For each of `target` positions the nearest of `source` positions, on the align_corners grid."""
    if target == 1 or source == 1:
        # A single sample stands for the whole side: take its middle.
        return torch.full((target,), (source - 1) // 2, dtype=torch.long, device=device)
    # Integer arithmetic: round(i * (source - 1) / (target - 1)), half up, the same on every device.
    steps = torch.arange(target, device=device)
    return (2 * steps * (source - 1) + (target - 1)) // (2 * (target - 1))


def resize_labels(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest (N, H, W) labels or masks of any dtype -> (N, *size), on the same grid as `resize_map`."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    rows = nearest_indices(x.shape[-2], size[0], x.device)
    columns = nearest_indices(x.shape[-1], size[1], x.device)
    return x[..., rows[:, None], columns[None, :]]
