"""A light depth head on timm's backbones, with bins and in metres."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from densekd.errors import UserError
from densekd.models import Taps, depth_timm
from densekd.models._depth_range import bounded_depth
from tests.models.base import CLASSES, ModelTester

SMALL = {"backbone": "mobilenetv3_small_050", "pyramid_channels": 16}


class TestDepthTimm(ModelTester):
    stride = 4
    aux = False

    def build(self, in_channels: int = 3) -> nn.Module:
        return depth_timm(CLASSES, in_channels=in_channels, **SMALL)


def test_one_class_gives_metres():
    torch.manual_seed(0)
    network = depth_timm(1, depth_range=(0.5, 8.0), **SMALL)
    depth = Taps(network)(torch.rand(2, 3, 33, 47)).prediction
    assert depth.shape == (2, 1, 9, 12)
    assert depth.min() >= 0.5
    assert depth.max() <= 8.0
    depth.log().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    # a fresh network is about in the middle of the range, where it learns fastest
    assert abs(depth.log().mean().item() - math.log(2)) < 0.7


def test_bounded_depth():
    x = torch.tensor([-100.0, 0.0, 100.0]).view(1, 1, 1, 3)
    assert bounded_depth(x, (0.5, 8.0)).flatten().tolist() == pytest.approx([0.5, 2.0, 8.0])
    half = bounded_depth(x.bfloat16(), (0.5, 8.0))
    assert half.dtype == torch.float32


@pytest.mark.parametrize("depth_range", [None, (0.0, 5.0), (5.0, 1.0), (1.0, math.inf)])
def test_metres_need_a_range(depth_range):
    with pytest.raises(UserError, match=r"needs depth_range=|expected 0 < nearest < farthest"):
        depth_timm(1, depth_range=depth_range, **SMALL)
