"""Blocks of ESPNetv2: grouped and depth-wise convolutions over dilations, and a pyramid of sizes.

Source: Mehta et al., *ESPNetv2: A Light-weight, Power Efficient, and General Purpose Convolutional Neural Network*
(CVPR 2019), and the decoder of the code that its authors published for segmentation. Attribute names are the keys of
the published checkpoints.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn

from densekd.layers.pyramid import pool_to
from densekd.ops.resize import resize_map

BRANCHES = 4  # parallel dilations of an `EESP`
# The sizes of `SizePyramid` as fractions of the map's own, and the least length of a side.
SIZES = ((2, 1), (3, 2), (1, 1), (1, 2), (1, 10))
LEAST = 5


def conv(in_channels: int, out_channels: int, kernel: int, **options: Any) -> nn.Conv2d:
    """Convolution without bias that keeps the size (divided by its stride)."""
    padding = kernel // 2 * options.get("dilation", 1)
    return nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False, **options)


def named(**blocks: nn.Module) -> nn.Sequential:
    """The blocks one after the other, under these names."""
    return nn.Sequential(OrderedDict(blocks))


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution and batch norm: ``conv``, ``bn``."""
    first = conv(in_channels, out_channels, kernel, stride=stride, groups=groups)
    return named(conv=first, bn=nn.BatchNorm2d(out_channels))


def conv_norm_act(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm and PReLU: ``conv``, ``bn``, ``act``."""
    block = conv_norm(in_channels, out_channels, kernel, stride=stride, groups=groups)
    block.add_module("act", nn.PReLU(out_channels))
    return block


def norm_act(channels: int) -> nn.Sequential:
    """Batch norm and PReLU: ``bn``, ``act``."""
    return named(bn=nn.BatchNorm2d(channels), act=nn.PReLU(channels))


def numbered(name: str, block: nn.Sequential) -> nn.Sequential:
    """The block with numbers for keys under `name`, as the decoder's keys are: ``cbr.0``, ``cbr.1``, ``cbr.2``."""
    return named(**{name: nn.Sequential(*block)})


def dilations(largest: int) -> list[int]:
    """Of the branches: 1, 2, 3, 4 as far as `largest`, and 1 for those beyond it, which come first."""
    return sorted(d if d <= largest else 1 for d in range(1, BRANCHES + 1))


class EESP(nn.Module):
    """Reduce by groups, one depth-wise convolution a dilation, each added to the sum of the smaller ones, and merge.

    Args:
        in_channels: a multiple of 4, the number of branches.
        out_channels: a multiple of 16: each branch has a quarter of them, reduced in four groups.
        largest: the largest dilation, in 1 to 4.
        stride: 2 is the branch of `EESPDown`, which has no activation at its end.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, largest: int, stride: int = 1
    ) -> None:
        super().__init__()
        n = out_channels // BRANCHES
        self.proj_1x1 = conv_norm_act(in_channels, n, 1, groups=BRANCHES)
        self.spp_dw = nn.ModuleList(
            named(conv=conv(n, n, 3, stride=stride, groups=n, dilation=d))
            for d in dilations(largest)
        )
        self.br_after_cat = norm_act(out_channels)
        self.conv_1x1_exp = conv_norm(out_channels, out_channels, 1, groups=BRANCHES)
        self.residual = stride == 1 and in_channels == out_channels
        if stride == 1:
            self.module_act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h / stride, w / stride), rounded up."""
        reduced = self.proj_1x1(x)
        branches: list[Tensor] = []
        for branch in self.spp_dw:
            y = branch(reduced)
            branches.append(y + branches[-1] if branches else y)
        y = self.conv_1x1_exp(self.br_after_cat(torch.cat(branches, dim=1)))
        if self.residual:
            y = y + x
        return self.module_act(y) if hasattr(self, "module_act") else y


class EESPDown(nn.Module):
    """Halve: pooled input and a strided `EESP` side by side, plus the image itself at that size.

    Args:
        in_channels, out_channels: of the map; the difference is the `EESP`'s.
        image_channels: C of the image.
        largest: the largest dilation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, image_channels: int, largest: int
    ) -> None:
        super().__init__()
        self.eesp = EESP(in_channels, out_channels - in_channels, largest=largest, stride=2)
        self.avg = nn.AvgPool2d(3, stride=2, padding=1)
        self.inp_reinf = nn.Sequential(
            conv_norm_act(image_channels, 3, 3), conv_norm(3, out_channels, 1)
        )
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """(N, in_channels, h, w) and the image (N, C, h / 2, w / 2) -> (N, out_channels, h / 2, w / 2), rounded up."""
        y = torch.cat([self.avg(x), self.eesp(x)], dim=1)
        return self.act(y + self.inp_reinf(image))


class SizePyramid(nn.Module):
    """Depth-wise convolutions of a narrow map at `SIZES` of its own size, shuffled together and merged.

    Args:
        in_channels: C of the input.
        width: the channels at each size.
        out_channels: of the result.
        last: the result is logits: a bias, and neither norm nor activation.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, *, last: bool) -> None:
        super().__init__()
        self.projection_layer = numbered("cbr", conv_norm_act(in_channels, width, 1))
        self.stages = nn.ModuleList(conv(width, width, 3, groups=width) for _ in SIZES)
        joined = width * len(SIZES)
        self.merge_layer = nn.Sequential(
            numbered("br", norm_act(joined)),
            nn.ChannelShuffle(len(SIZES)),
            numbered("cbr", conv_norm_act(joined, width, 3, groups=width)),
            nn.Conv2d(width, out_channels, 1, bias=last),
        )
        self.br = nn.Identity() if last else numbered("br", norm_act(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        x = self.projection_layer(x)
        size = (x.shape[-2], x.shape[-1])
        maps = []
        for stage, (times, by) in zip(self.stages, SIZES, strict=True):
            # Differs from the authors' code: whole numbers, so that 70 · 0.1 is 7 (with floats it is 8, rounded up).
            scaled = tuple(torch.sym_max(LEAST, (n * times + by - 1) // by) for n in size)
            other = cast("tuple[int, int]", scaled)
            if times > by:
                maps.append(pool_to(stage(resize_map(x, other)), size))
            elif times < by:
                maps.append(resize_map(stage(pool_to(x, other)), size))
            else:
                maps.append(stage(x))
        return self.br(self.merge_layer(torch.cat(maps, dim=1)))


class GatedConv(nn.Module):
    """A grouped convolution whose channels are scaled by a sigmoid of the map's mean.

    Args:
        in_channels, out_channels: the groups are their greatest common divisor.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.wt_layer = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(in_channels, out_channels, 1), nn.Sigmoid()
        )
        groups = math.gcd(in_channels, out_channels)
        self.expansion_layer = numbered(
            "cbr", conv_norm_act(in_channels, out_channels, 3, groups=groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        return self.expansion_layer(x) * self.wt_layer(x)
