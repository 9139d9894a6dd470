"""Reversed Huber loss by hand."""

import pytest
import torch

from densekd.losses import BerHu, berhu, depth_l1
from tests.losses.depth_inputs import (
    check_half_precision,
    check_invalid_pixels,
    check_nothing_valid,
    maps,
)


def test_by_hand():
    """Errors 0.5, 1 and 5 m: c = 1; the last is (25 + 1) / 2."""
    target = torch.full((1, 1, 1, 3), 2.0)
    prediction = target + torch.tensor([-0.5, 1.0, 5.0])
    assert berhu(prediction, target).item() == pytest.approx((0.5 + 1 + 13) / 3)
    # threshold 0.5: c = 2.5
    expected = (0.5 + 1 + (25 + 6.25) / 5) / 3
    assert berhu(prediction, target, threshold=0.5).item() == pytest.approx(expected)


def test_a_threshold_of_one_is_the_absolute_error():
    prediction, target = maps()
    assert torch.allclose(berhu(prediction, target, threshold=1.0), depth_l1(prediction, target))
    assert berhu(prediction, target) > depth_l1(prediction, target)


def test_no_error_at_all():
    prediction = maps()[0].requires_grad_()
    value = berhu(prediction, prediction.detach())
    assert value == 0
    value.backward()
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize("check", [check_invalid_pixels, check_nothing_valid, check_half_precision])
def test_invalid_pixels_and_precision(check):
    check(lambda p, t, m: BerHu()(p, t, m), *maps())


def test_bad_threshold():
    with pytest.raises(ValueError, match="threshold is 0; it must be a finite number above 0"):
        BerHu(threshold=0)
