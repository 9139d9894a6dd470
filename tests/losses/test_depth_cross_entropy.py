"""Cross-entropy over depth bins: against torch's, by hand, and what does not count."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

from densekd.losses import DepthCrossEntropy, depth_cross_entropy
from densekd.ops.depth_bins import depth_to_bins
from densekd.ops.resize import resize_map
from tests.losses.depth_inputs import check_half_precision, check_nothing_valid, maps

RANGE = (0.5, 8.0)


@pytest.fixture
def logits():
    return torch.randn(2, 9, 6, 7, generator=torch.Generator().manual_seed(3))


def test_sharp_is_plain_cross_entropy(logits):
    _, depth = maps()
    expected = F.cross_entropy(logits, depth_to_bins(depth[:, 0], 9, RANGE))
    value = depth_cross_entropy(logits, depth, depth_range=RANGE, sharpness=50.0)
    assert torch.allclose(value, expected)


def test_by_hand():
    """Three bins, true one in the middle: weights e^-a, 1, e^-a over their sum; uniform logits cost log 3."""
    depth = torch.full((1, 1, 1, 1), 4.0)  # of 1 to 16 m: the middle of three bins
    a = 0.7
    near = math.exp(-a) / (1 + 2 * math.exp(-a))
    logits = torch.tensor([1.0, 2.0, -1.0]).view(1, 3, 1, 1)
    log_q = logits.flatten().log_softmax(0)
    expected = -(near * log_q[0] + (1 - 2 * near) * log_q[1] + near * log_q[2])
    value = depth_cross_entropy(logits, depth, depth_range=(1.0, 16.0), sharpness=a)
    assert torch.allclose(value, expected)
    flat = depth_cross_entropy(torch.zeros_like(logits), depth, depth_range=(1.0, 16.0))
    assert flat.item() == pytest.approx(math.log(3))


def test_a_near_miss_costs_less_than_a_far_one():
    depth = torch.full((1, 1, 1, 1), 1.0)
    costs = []
    for said in (0, 1, 3, 6):
        logits = 5.0 * F.one_hot(torch.tensor(said), 9).float().view(1, 9, 1, 1)
        costs.append(depth_cross_entropy(logits, depth, depth_range=(0.9, 9.0)).item())
    assert costs == sorted(costs)
    assert costs[0] < costs[1] < costs[2]


def test_logits_are_resized_to_the_depth(logits):
    depth = 1 + torch.rand(2, 1, 13, 12, generator=torch.Generator().manual_seed(4))
    value = depth_cross_entropy(logits, depth, depth_range=RANGE)
    whole = depth_cross_entropy(resize_map(logits, (13, 12)), depth, depth_range=RANGE)
    assert torch.equal(value, whole)


def test_what_does_not_count(logits):
    _, depth = maps()
    mask = torch.ones(2, 6, 7, dtype=torch.bool)
    mask[0, :3] = False
    expected = depth_cross_entropy(logits, depth, depth_range=RANGE, mask=mask)
    depth[0, 0, 0], depth[0, 0, 1], depth[0, 0, 2] = 0.0, torch.nan, 99.0
    logits[0, :, :3] = torch.nan
    logits.requires_grad_()
    value = depth_cross_entropy(logits, depth, depth_range=RANGE)
    assert torch.allclose(value, expected)
    value.backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("check", [check_nothing_valid, check_half_precision])
def test_nothing_valid_and_precision(check, logits):
    loss = DepthCrossEntropy(depth_range=RANGE)
    check(lambda p, t, m: loss(p, t, m), logits, maps()[1])


def test_gradcheck(logits):
    depth = maps(1, 2, 3)[1].double()
    inputs = logits[:1, :, :2, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: depth_cross_entropy(z, depth, depth_range=RANGE), inputs
    )


def test_bad_arguments(logits):
    _, depth = maps()
    with pytest.raises(ValueError, match="1 depth bins leave nothing"):
        depth_cross_entropy(logits[:, :1], depth, depth_range=RANGE)
    with pytest.raises(ValueError, match="expected 0 < nearest < farthest"):
        depth_cross_entropy(logits, depth, depth_range=(8.0, 0.5))
    with pytest.raises(ValueError, match=r"go with \(2, 1, H, W\)"):
        depth_cross_entropy(logits, depth[:1], depth_range=RANGE)
    with pytest.raises(ValueError, match="sharpness is -1"):
        DepthCrossEntropy(depth_range=RANGE, sharpness=-1)


def test_where_the_count_is_not_at_hand_the_value_is_the_same(logits, monkeypatch):
    """The form of a GPU: what does not count is replaced, and not taken out."""
    _, depth = maps()
    depth[0, 0, :2] = 0
    depth[1, 0, 3] = torch.nan
    values, gradients = [], []
    for at_hand in (True, False):
        monkeypatch.setattr(
            sys.modules["densekd.losses.depth_cross_entropy"],
            "count_is_at_hand",
            lambda _, a=at_hand: a,
        )
        given = logits.clone()
        given[0, :, 0, 0] = torch.nan  # counts nowhere
        given.requires_grad_()
        value = depth_cross_entropy(given, depth, depth_range=RANGE)
        value.backward()
        values.append(value)
        gradients.append(given.grad)
    assert torch.allclose(*values, rtol=1e-6)
    assert torch.allclose(*gradients, atol=1e-8)
    assert gradients[1].isfinite().all()
    assert depth_cross_entropy(logits, torch.zeros_like(depth), depth_range=RANGE) == 0
