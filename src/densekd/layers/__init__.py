"""Building blocks of networks."""

from densekd.layers.abn import ABN
from densekd.layers.attention import SelfAttention2d
from densekd.layers.esp import ESPBlock, ESPDown
from densekd.layers.inplace import inplace_abn, synchronised_batch_norm
from densekd.layers.pyramid import PyramidPooling

__all__ = [
    "ABN",
    "ESPBlock",
    "ESPDown",
    "PyramidPooling",
    "SelfAttention2d",
    "inplace_abn",
    "synchronised_batch_norm",
]
