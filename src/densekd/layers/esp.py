"""Blocks of ESPNet: reduce, split over dilations, merge.

Source: Mehta et al., *ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic Segmentation* (ECCV 2018).
Attribute names (``c1``, ``d1`` … ``d16``, ``conv``, ``bn``, ``act``) are the published checkpoints' keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORM_EPS = 1e-3  # the eps of every norm in ESPNet; torch's own default is 1e-5


class Conv(nn.Module):
    """Convolution without bias that keeps the size (divided by `stride`)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 * dilation
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class NormAct(nn.Module):
    """Batch norm and PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=NORM_EPS)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(x))


class ConvNormAct(Conv):
    """`Conv`, batch norm and PReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride)
        self.bn = nn.BatchNorm2d(out_channels, eps=NORM_EPS)
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class DilatedPyramid(nn.Module):
    """A reduction, five dilated branches, and hierarchical fusion: each branch is added to the sum of the smaller ones.

    The fusion hides the grid that large dilations leave. Branch 1 is not part of the fusion; it takes the channels that
    are left when the number is divided by five.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        n = out_channels // 5
        if n < 1:
            raise ValueError(f"an ESP block needs at least 5 output channels, got {out_channels}")
        self.c1 = Conv(in_channels, n, kernel, stride=stride)
        self.d1 = Conv(n, out_channels - 4 * n, 3)
        self.d2 = Conv(n, n, 3, dilation=2)
        self.d4 = Conv(n, n, 3, dilation=4)
        self.d8 = Conv(n, n, 3, dilation=8)
        self.d16 = Conv(n, n, 3, dilation=16)

    def pyramid(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        two = self.d2(x)
        four = two + self.d4(x)
        eight = four + self.d8(x)
        sixteen = eight + self.d16(x)
        return torch.cat([self.d1(x), two, four, eight, sixteen], dim=1)


class ESPDown(DilatedPyramid):
    """(N, in_channels, h, w) -> (N, out_channels, h / 2, w / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel=3, stride=2)
        self.bn = nn.BatchNorm2d(out_channels, eps=NORM_EPS)
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.pyramid(x)))


class ESPBlock(DilatedPyramid):
    """(N, in_channels, h, w) -> (N, out_channels, h, w), with a residual where the channels are equal."""

    def __init__(self, in_channels: int, out_channels: int, *, residual: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel=1, stride=1)
        self.bn = NormAct(out_channels)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.pyramid(x)
        return self.bn(x + y if self.residual else y)


class ImagePyramid(nn.Module):
    """Halves the image `times` times by average pooling; the result joins the features of that size."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.pool = nn.Sequential(*(nn.AvgPool2d(3, stride=2, padding=1) for _ in range(times)))

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(images)
