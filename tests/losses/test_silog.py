"""Scale-invariant log error: hand values, invariances, and the zero at which a root has no slope."""

import math

import numpy as np
import pytest
import torch

from densekd.losses import SiLog, silog
from tests.losses.depth_inputs import (
    check_half_precision,
    check_invalid_pixels,
    check_nothing_valid,
    maps,
)


def test_by_hand():
    """Log errors 0 and log 4: mean square (log 4)² / 2, squared mean (log 4)² / 4."""
    prediction, target = torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[[2.0, 1.0]]]])
    expected = 10 * math.log(4) * math.sqrt(1 / 2 - 0.85 / 4)
    assert silog(prediction, target).item() == pytest.approx(expected, rel=1e-4)
    plain = silog(prediction, target, variance_focus=0.0, scale=1.0)
    assert plain.item() == pytest.approx(math.log(4) / math.sqrt(2), rel=1e-4)


def test_against_numpy():
    prediction, target = maps()
    d = np.log(prediction.double().numpy()) - np.log(target.double().numpy())
    expected = 10 * np.sqrt((d**2).mean() - 0.85 * d.mean() ** 2)
    assert silog(prediction, target).item() == pytest.approx(expected, rel=1e-5)


def test_a_common_factor():
    prediction, target = maps()
    free = silog(prediction, target, variance_focus=1.0)
    assert torch.allclose(silog(3 * prediction, target, variance_focus=1.0), free, rtol=1e-5)
    assert silog(3 * prediction, target) > silog(prediction, target)
    # all of the error is a factor: 10 · √(1 - 0.85) · log 3
    value = silog(3 * target, target).item()
    assert value == pytest.approx(10 * math.sqrt(0.15) * math.log(3), rel=1e-4)


def test_zero_has_a_finite_gradient():
    _, target = maps()
    prediction = target.clone().requires_grad_()
    value = silog(prediction, target)
    assert value == 0
    value.backward()
    assert prediction.grad.isfinite().all()


def test_gradcheck():
    prediction, target = (x.double() for x in maps(1, 2, 3))
    assert torch.autograd.gradcheck(lambda p: silog(p, target), prediction.requires_grad_())


@pytest.mark.parametrize("check", [check_invalid_pixels, check_nothing_valid, check_half_precision])
def test_invalid_pixels_and_precision(check):
    check(lambda p, t, m: SiLog()(p, t, m), *maps())


def test_bad_arguments():
    prediction, target = maps()
    with pytest.raises(ValueError, match=r"goes down to 0 m.*bound the network's depth"):
        silog(torch.zeros_like(prediction), target)
    with pytest.raises(ValueError, match=r"differ in size: resize the prediction"):
        silog(prediction[..., :3], target)
    with pytest.raises(ValueError, match=r"bins_to_depth"):
        silog(prediction.expand(-1, 5, -1, -1), target)
    with pytest.raises(ValueError, match=r"variance_focus is 2; expected a number in \[0, 1\]"):
        SiLog(variance_focus=2)
    with pytest.raises(ValueError, match="mask is"):
        silog(prediction, target, mask=torch.ones(2, 3, 3, dtype=torch.bool))
