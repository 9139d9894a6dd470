"""ResNet with a deep stem and output stride 8, in the layout of the paper's authors."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from densekd.layers.abn import ABN


def norm(channels: int) -> ABN:
    """The norm inside the ResNet: |weight| + eps, but no activation (a ReLU follows)."""
    return ABN(channels, activation="identity")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels,
            channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            bias=False,
        )
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(
            channels, channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = norm(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; the output has four times as many channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(
            channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A projection where the shapes differ, None where the identity fits."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels)
    )


class DilatedResNet(nn.Module):
    """Stem of three 3x3 convolutions, then four stages at strides 4, 8, 8, 8 (dilations 1, 1, 2, 4).

    The max pool rounds up: a 512x512 crop gives 65x65 maps, as the authors' terms and discriminator expect.
    Keys are those of the deep-stem ImageNet ResNets (``conv1`` … ``bn3``, ``layer1`` … ``layer4``).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: the number of blocks in each stage.
        in_channels: channels of the image.
        width: multiplies every channel count.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        stem, joined, *stages = (round(c * width) for c in (64, 128, 64, 128, 256, 512))
        self.conv1 = nn.Conv2d(in_channels, stem, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, padding=1, bias=False)
        self.bn2 = norm(stem)
        self.conv3 = nn.Conv2d(stem, joined, 3, padding=1, bias=False)
        self.bn3 = norm(joined)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)

        def stage(
            before: int, channels: int, depth: int, stride: int, dilation: int
        ) -> nn.Sequential:
            blocks = [block(before, channels, stride=stride, dilation=dilation)]
            for _ in range(depth - 1):
                blocks.append(
                    block(channels * block.expansion, channels, stride=1, dilation=dilation)
                )
            return nn.Sequential(*blocks)

        widths = [c * block.expansion for c in stages]
        self.layer1 = stage(joined, stages[0], depths[0], 1, 1)
        self.layer2 = stage(widths[0], stages[1], depths[1], 2, 1)
        self.layer3 = stage(widths[1], stages[2], depths[2], 1, 2)
        self.layer4 = stage(widths[2], stages[3], depths[3], 1, 4)
        self.stage_channels = tuple(widths)

    def stem(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 128 · width, H / 4, W / 4)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.maxpool(x)
