"""The depth network of virtual normals at small widths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densekd.errors import UserError
from densekd.models import vnl
from densekd.models.vnl import AdaptiveMerge, PooledContext, Transfer
from tests.models.base import CLASSES, ModelTester

WIDTHS = (24, 16, 16, 8)


class TestVNLStudent(ModelTester):
    stride = 2
    aux = False

    def build(self, in_channels: int = 3) -> nn.Module:
        return vnl(
            CLASSES,
            backbone="mobilenetv2_035",
            in_channels=in_channels,
            output_stride=8,
            decoder_channels=WIDTHS,
            context="pool",
        )


class TestVNLTeacher(ModelTester):
    stride = 4
    aux = False

    def build(self, in_channels: int = 3) -> nn.Module:
        return vnl(
            CLASSES,
            backbone="resnet10t",
            in_channels=in_channels,
            output_stride=16,
            decoder_channels=WIDTHS,
            stride=4,
        )


def test_one_class_gives_metres():
    network = vnl(
        1, backbone="resnet10t", decoder_channels=WIDTHS, depth_range=(0.5, 8.0), stride=4
    )
    depth = network(torch.rand(1, 3, 64, 96))
    assert depth.shape == (1, 1, 16, 24)
    assert depth.min() >= 0.5
    assert depth.max() <= 8.0


def test_merging_by_hand():
    """With the weights' last convolution at 0 the fine map counts half."""
    merge = AdaptiveMerge(4)
    nn.init.zeros_(merge.weigh[3].weight)
    fine, coarse = torch.rand(2, 4, 5, 6), torch.rand(2, 4, 1, 1)
    assert torch.allclose(merge(fine, coarse), 0.5 * fine + coarse)


def test_the_weights_see_the_whole_of_both_maps():
    torch.manual_seed(0)
    merge = AdaptiveMerge(16)
    nn.init.ones_(merge.weigh[1].weight)  # by chance the two hidden channels may be dead
    nn.init.normal_(merge.weigh[3].weight, std=0.05)
    fine, coarse = torch.rand(1, 16, 5, 6), torch.rand(1, 16, 5, 6)
    weight = (merge(fine, coarse) - coarse) / fine  # one number a channel
    assert torch.allclose(weight, weight[..., :1, :1].expand_as(weight), atol=1e-5)
    moved = (merge(fine, coarse + torch.eye(5, 6)) - coarse - torch.eye(5, 6)) / fine
    assert not torch.allclose(moved, weight, atol=1e-4)


def test_transfer_is_a_residual():
    block = Transfer(6, 4).eval()
    nn.init.zeros_(block.body[3].weight)
    x = torch.rand(2, 6, 7, 5)
    assert torch.allclose(block(x), block.reduce(x).relu())


def test_pooled_context_is_the_same_everywhere():
    context = PooledContext(6, 4).eval()
    x = torch.rand(2, 6, 7, 5)
    out = context(x)
    assert out.shape == (2, 4, 7, 5)
    assert torch.allclose(out, out[..., :1, :1].expand_as(out))
    assert torch.allclose(out[..., 0, 0], context.project(x).mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_channels": (8, 8)}, r"has 2 widths; this backbone has 4 maps"),
        ({"context": "psp"}, r"context is 'psp'; choose 'aspp' or 'pool'"),
        ({"stride": 8}, r"stride is 8; .* take 4 or 2"),
        ({"num_classes": 1}, r"vnl with num_classes 1 gives metres and needs depth_range"),
    ],
)
def test_what_cannot_be_built_says_why(options, message):
    given = {"num_classes": 5, "backbone": "resnet10t", "decoder_channels": WIDTHS, **options}
    with pytest.raises(UserError, match=message):
        vnl(**given)
