"""Which taps are sensible, and what a network without a default tap is answered with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from densekd.models import espnet_c, fcos_timm, fpn_timm, list_taps
from densekd.models.tap_list import candidates, is_regular, sensible_taps


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(12, 5, 1)  # registered first, run last
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout2d()
        self.deep = nn.Conv2d(8, 12, 3, 2, 1)
        self.same = nn.Conv2d(12, 12, 1)
        self.pool = nn.AdaptiveAvgPool2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.same(self.deep(self.drop(self.norm(self.stem(x))))))
        return self.head(x + self.pool(x).mean())


IMAGES = torch.rand(1, 3, 64, 64)


def test_the_last_map_of_each_stride_by_the_order_of_the_forward():
    rows = list_taps(Small(), IMAGES)
    assert next(row.path for row in rows) == "head"
    order = {row.path: row.order for row in rows}
    assert sorted(order, key=order.__getitem__) == [
        "stem", "norm", "drop", "deep", "same", "pool", "head",
    ]  # fmt: skip
    assert {row.path: row.runs for row in rows}["same"] == 2
    # Not: dropout, what runs twice, what is pooled, and the prediction.
    assert sensible_taps(Small(), rows, (64, 64), 5) == {
        "norm": ["last at stride 4"],
        "deep": ["last at stride 8"],
    }


def test_the_networks_own_tap_and_levels_are_marked():
    network = espnet_c(5, p=1, q=1)
    marks = sensible_taps(network, list_taps(network, IMAGES), (64, 64), 5)
    assert marks["b3"] == ["default", "last at stride 8"]
    network = fcos_timm(5, backbone="test_resnet", pyramid_channels=64)
    marks = sensible_taps(network, list_taps(network, torch.rand(1, 3, 128, 128)), (128, 128), 0)
    assert marks["fpn:*"] == ["default", "levels at strides 8, 16, 32, 64, 128"]


def test_candidates_are_the_latest_maps_of_stride_4_and_more():
    assert candidates(Small(), IMAGES) == ["deep", "norm"]
    found = candidates(fpn_timm("test_resnet", 5, pyramid_channels=32), IMAGES)
    assert found[0] == "fuse"
    assert len(found) == 3


@pytest.mark.parametrize(
    ("stride", "patch", "regular"),
    [(8, 1, True), (1, 1, True), (21, 1, False), (14, 14, True), (28, 14, True), (0, 4, False)],
)
def test_strides_of_pooled_maps_are_not_regular(stride, patch, regular):
    assert is_regular(stride, patch) == regular
