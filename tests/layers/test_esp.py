from __future__ import annotations

import pytest
import torch
from torch import nn

from densekd.layers import ESPBlock, ESPDown
from densekd.layers.esp import ImagePyramid


@pytest.mark.parametrize("channels", [5, 11, 64])
def test_block(channels: int) -> None:
    block = ESPBlock(channels, channels).eval()
    assert block(torch.rand(2, channels, 9, 11)).shape == (2, channels, 9, 11)


@pytest.mark.parametrize("size", [(8, 10), (9, 11)])
def test_down_rounds_up(size: tuple[int, int]) -> None:
    down = ESPDown(7, 12).eval()
    assert down(torch.rand(1, 7, *size)).shape == (1, 12, -(-size[0] // 2), -(-size[1] // 2))
    assert (
        ImagePyramid(1)(torch.rand(1, 7, *size)).shape[-2:]
        == down(torch.rand(1, 7, *size)).shape[-2:]
    )


def test_residual_is_added_before_the_norm() -> None:
    block = ESPBlock(10, 10).eval()
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    x = torch.rand(1, 10, 4, 4)
    torch.testing.assert_close(block(x), block.bn(x))


def test_fusion_adds_up_over_the_dilations() -> None:
    block = ESPBlock(10, 10, residual=False)
    for name, module in block.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            if name != "c1.conv":
                module.weight.data[:, 0, 1, 1] = 1
    block.c1.conv.weight.data[0, 0] = 1
    x = torch.rand(1, 10, 6, 6)
    y = block.pyramid(x)
    for channel, times in zip(range(0, 10, 2), (1, 1, 2, 3, 4), strict=True):
        torch.testing.assert_close(y[:, channel], times * x[:, 0])


def test_too_few_channels() -> None:
    with pytest.raises(ValueError, match="at least 5 output channels, got 4"):
        ESPBlock(8, 4)
