"""Angles between predicted and true normals, as Eigen and Fergus (ICCV 2015) report them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.ops.collectives import all_reduce_sum
from densekd.types import Batch

LIMITS = (11.25, 22.5, 30.0)  # degrees


class AngleErrors:
    """The mean angle over all pixels with a known normal, and the share of them below each limit."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # Sum of angles, pixels, pixels below each limit.
        self.sums = torch.zeros(2 + len(LIMITS), dtype=torch.float64, device=device)

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Add (N, 3, H, W) vectors of any length."""
        known = known_pixels(batch)
        cosine = F.cosine_similarity(prediction.float(), batch.targets, dim=1)[known]
        angles = torch.rad2deg(cosine.clamp(-1, 1).arccos()).double()
        below = [(angles < limit).sum() for limit in LIMITS]
        self.sums += torch.stack([angles.sum(), known.sum(), *below]).to(self.sums)

    def compute(self) -> dict[str, Any]:
        total = all_reduce_sum(self.sums.clone()).tolist()
        count = total[1]
        scores = {"angle": total[0] / count if count else None, "pixels": int(count)}
        for limit, below in zip(LIMITS, total[2:], strict=True):
            scores[f"below_{limit:g}"] = below / count if count else None
        return scores


def known_pixels(batch: Batch) -> Tensor:
    """(N, H, W) bool: the pixels with a known normal."""
    return batch.targets.any(dim=1) & batch.inside & batch.labelled[:, None, None]
