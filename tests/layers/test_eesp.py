"""Blocks of ESPNetv2."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densekd.layers.eesp import EESP, EESPDown, GatedConv, SizePyramid, dilations
from densekd.layers.pyramid import _cells, pool_to


@pytest.mark.parametrize(("largest", "expected"), [(4, [1, 2, 3, 4]), (3, [1, 1, 2, 3])])
def test_dilations_beyond_the_largest_come_first_as_ones(largest, expected):
    assert dilations(largest) == expected
    block = EESP(16, 16, largest=largest)
    assert [branch.conv.dilation[0] for branch in block.spp_dw] == expected


def test_branches_are_sums_of_the_smaller_ones():
    block = EESP(4, 16, largest=4).eval()
    with torch.no_grad():
        block.proj_1x1.bn.bias.fill_(1.0)  # the reduced map is 1 everywhere
        block.proj_1x1.conv.weight.zero_()
        for k, branch in enumerate(block.spp_dw):
            branch.conv.weight.zero_()[..., 1, 1] = k + 1
        seen = []
        block.br_after_cat.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        block(torch.zeros(1, 4, 9, 9))
    assert seen[0][0, ::4, 4, 4].tolist() == [1, 3, 6, 10]


def test_a_block_without_weights_passes_its_input():
    block = EESP(16, 16, largest=4).eval()
    torch.nn.init.zeros_(block.conv_1x1_exp.conv.weight)
    x = torch.rand(1, 16, 6, 6)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("size", [(12, 16), (13, 17)])
def test_down_halves_as_the_pooled_image_does(size):
    pooled = F.avg_pool2d(torch.rand(1, 3, *size), 3, stride=2, padding=1)
    down = EESPDown(8, 24, image_channels=3, largest=4)
    assert down(torch.rand(1, 8, *size), pooled).shape == (1, 24, *pooled.shape[-2:])
    assert not hasattr(down.eesp, "module_act")


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (40, 61)])
@pytest.mark.parametrize("last", [True, False])
def test_size_pyramid_keeps_the_size(size, last):
    pyramid = SizePyramid(6, 5, 11, last=last).eval()
    assert pyramid(torch.rand(2, 6, *size)).shape == (2, 11, *size)
    assert (pyramid.merge_layer[3].bias is not None) is last


def test_gate_scales_channels():
    block = GatedConv(6, 4).eval()
    torch.nn.init.zeros_(block.wt_layer[1].weight)
    x = torch.rand(1, 6, 5, 5)
    torch.testing.assert_close(block(x), block.expansion_layer(x) / 2)
    assert block.expansion_layer.cbr[0].groups == 2


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 9), (11, 20)])
def test_pooling_as_a_product_is_adaptive_pooling(size):
    x = torch.rand(2, 3, 7, 9)
    rows, columns = (_cells(x.shape[i], size[i], x.device) for i in (-2, -1))
    torch.testing.assert_close(rows @ x @ columns.mT, F.adaptive_avg_pool2d(x, size))
    torch.testing.assert_close(pool_to(x, size), F.adaptive_avg_pool2d(x, size))
