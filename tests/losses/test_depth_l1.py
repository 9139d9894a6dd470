"""Mean absolute error by hand."""

import pytest
import torch

from densekd.losses import DepthL1, depth_l1
from tests.losses.depth_inputs import (
    check_half_precision,
    check_invalid_pixels,
    check_nothing_valid,
    maps,
)


def test_by_hand():
    target = torch.tensor([[[[1.0, 2.0, 0.0, 4.0]]]])
    prediction = torch.tensor([[[[1.5, 1.0, 9.0, 9.0]]]])
    assert depth_l1(prediction, target).item() == pytest.approx((0.5 + 1 + 5) / 3)
    mask = torch.tensor([[[True, True, True, False]]])
    assert depth_l1(prediction, target, mask=mask).item() == pytest.approx(0.75)


@pytest.mark.parametrize("check", [check_invalid_pixels, check_nothing_valid, check_half_precision])
def test_invalid_pixels_and_precision(check):
    check(lambda p, t, m: DepthL1()(p, t, m), *maps())
