"""How far the probability of the answer is from how often it is right, over all pixels.

Expected calibration error: Naeini et al., AAAI 2015, with equal bins of confidence, as Guo et al., ICML 2017 have it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.ops.collectives import all_reduce_sum


class Calibration:
    """Counts of answers by their confidence.

    Args:
        bins: equal parts of [0, 1]; part b holds confidences in (b / bins, (b + 1) / bins].
    """

    def __init__(self, bins: int = 15, *, device: torch.device | str = "cpu") -> None:
        if bins < 1:
            raise ValueError(f"bins is {bins}; expected at least 1")
        self.bins = bins
        # Rows: how many answers, the sum of their confidence, how many are right.
        self.sums = torch.zeros(3, bins, dtype=torch.float64, device=device)

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Add answers: their probabilities in [0, 1] and whether they are right (bool), of one shape.

        Raises:
            ValueError: shapes differ.
        """
        if confidence.shape != right.shape:
            raise ValueError(
                f"confidence has shape {tuple(confidence.shape)} and right {tuple(right.shape)}; expected one shape"
            )
        sure = confidence.detach().flatten().double()
        place = ((sure * self.bins).ceil() - 1).clamp(0, self.bins - 1).long()
        rows = torch.stack([torch.ones_like(sure), sure, right.flatten().double()])
        self.sums = self.sums.to(rows.device).index_add(1, place, rows)

    def reduce(self) -> Calibration:
        """Sum over ranks, in place. Call once, after the last update."""
        all_reduce_sum(self.sums)
        return self

    def compute(self) -> dict[str, Any]:
        """``ece`` (a fraction; None when nothing was counted) and ``bins``.

        Each bin is ``{"low", "high", "share", "confidence", "accuracy"}``; the last two are means, None where the
        bin is empty.
        """
        counts, sure, right = self.sums.tolist()
        total = sum(counts)
        gaps = [abs(s - r) for s, r in zip(sure, right, strict=True)]
        return {
            "ece": sum(gaps) / total if total else None,
            "bins": [
                {
                    "low": b / self.bins,
                    "high": (b + 1) / self.bins,
                    "share": count / total if total else 0.0,
                    "confidence": sure[b] / count if count else None,
                    "accuracy": right[b] / count if count else None,
                }
                for b, count in enumerate(counts)
            ],
        }
