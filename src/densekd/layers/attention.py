"""Self-attention over the positions of a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelfAttention2d(nn.Module):
    """SAGAN's self-attention: out = γ · softmax(QᵀK) V + x, with γ starting at 0 (the identity).

    The code is matmul, softmax, matmul, because the fused scaled_dot_product_attention has no reliable double
    backward, which a gradient penalty needs. The scores have no factor 1/√d, as in SAGAN and in the authors' code.

    Args:
        channels: the number of the map's channels; queries and keys have an eighth of it (at least 1).

    Shapes:
        (N, C, h, w) -> (N, C, h, w); memory grows with (h·w)².
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query_conv = nn.Conv2d(channels, inner, 1)
        self.key_conv = nn.Conv2d(channels, inner, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query_conv(x).flatten(2)  # (N, C/8, hw)
        key = self.key_conv(x).flatten(2)  # (N, C/8, hw)
        value = self.value_conv(x).flatten(2)  # (N, C, hw)
        attention = (query.transpose(1, 2) @ key).softmax(dim=-1)  # (N, hw queries, hw keys)
        out = (value @ attention.transpose(1, 2)).view_as(x)
        return self.gamma * out + x
