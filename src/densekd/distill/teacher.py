"""The frozen teacher: in eval mode for good, without gradients, in its own precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.models.taps import Taps
from densekd.types import DenseOutput


class Teacher(nn.Module):
    """Wraps a tapped network so that nothing can train it by accident.

    Args:
        network: the tapped network; its parameters stop requiring gradients.
        dtype: autocast to this dtype in the forward pass; None keeps whatever autocast state the caller has.

    `train()` leaves it in eval mode: a teacher whose norms follow the batch is another, worse teacher.
    Outputs come from ``no_grad`` (not ``inference_mode``, whose tensors cannot enter a backward pass).
    """

    def __init__(self, network: Taps, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.dtype = dtype
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> DenseOutput:
        """(N, C, H, W) RGB in [0, 1] -> prediction and tapped features."""
        if self.dtype is None:
            return self.network(images)
        with torch.autocast(
            images.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        ):
            return self.network(images)
