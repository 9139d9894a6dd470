"""Layers that round as an int8 file does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from densekd.layers.abn import ABN
from densekd.rewrite import is_int8, to_int8, unseen_layers
from densekd.rewrite.int8 import RoundedMap, RoundedWeight, constants


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2),
        nn.PReLU(4),
        nn.BatchNorm2d(4),  # follows no convolution: it stays
        nn.Conv2d(4, 5, 1),
    )


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 8, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def rounding() -> nn.Module:
    net = network()
    assert to_int8(net, images()) == 3
    return net.train()


def test_norms_are_folded_and_maps_round_after_the_first_batch(rounding):
    before = network().eval()
    assert isinstance(rounding[1], nn.Identity)
    assert is_int8(rounding)
    assert not is_int8(before)
    assert len(unseen_layers(rounding)) == 6
    exact = before(images())
    # Weights round from the start.
    assert 0 < (rounding.eval()(images()) - exact).abs().max() < 0.02 * exact.abs().max()
    rounding.train()(images())
    assert unseen_layers(rounding) == []
    answer = rounding.eval()(images())
    assert len(answer.unique()) <= 256
    assert 0 < (answer - exact).abs().max() < 0.05 * exact.abs().max()


def test_weights_have_a_scale_a_channel_of_seven_bits(rounding):
    for layer, axis in ((rounding[0], 0), (rounding[3], 1), (rounding[6], 0)):
        original = layer.parametrizations.weight.original
        largest = original.abs().amax([i for i in range(4) if i != axis], keepdim=True)
        steps = layer.weight / (largest / 64)
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert steps.abs().max() == 64
        assert (layer.weight - original).abs().max() <= (largest / 64).max() / 2 * 1.001


def test_a_channel_of_zeros_stays_finite():
    rounded = RoundedWeight(0)(torch.cat([torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)]))
    assert torch.equal(rounded.flatten(), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert torch.isfinite(RoundedWeight(0)(torch.zeros(2, 2))).all()


def test_ranges_follow_the_extremes_with_zero_inside():
    map_ = RoundedMap().train()
    map_(torch.tensor([1.0, 4.0]))
    assert map_.range.tolist() == [0.0, 4.0]
    map_(torch.tensor([-2.0, 4.0]))
    assert map_.range.tolist() == pytest.approx([-0.1, 4.0])
    given = torch.tensor([-1.0, 0.0, 1.0, 9.0], requires_grad=True)
    answer = map_.eval()(given)
    assert answer[1] == 0  # zero is kept, so that padding is
    assert answer.tolist() == pytest.approx([-0.1, 0, 1, 4.0], abs=4.1 / 255)
    answer.sum().backward()
    assert given.grad is not None
    assert given.grad.tolist() == [0, 1, 1, 0]
    assert map_.range.tolist() == pytest.approx([-0.1, 4.0])  # as training left it


def test_all_weights_learn_and_norms_keep_their_statistics(rounding):
    kept = rounding[5].running_mean.clone()
    rounding(images()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in rounding.parameters())
    assert torch.equal(rounding[5].running_mean, kept)


def test_its_state_fills_another_of_its_kind(rounding):
    rounding(images())
    other = network()
    to_int8(other, images())
    other.load_state_dict(rounding.state_dict())
    assert torch.equal(other.eval()(images()), rounding.eval()(images()))
    twin = copy.deepcopy(rounding)
    with torch.no_grad():
        twin[0].parametrizations.weight.original.zero_()
    assert not torch.equal(twin(images()), rounding(images()))


def test_constants_give_the_same_and_go_again(rounding):
    rounding(images())
    rounding.eval()
    free = rounding(images())
    with constants(rounding, plain=True):
        plain = rounding(images())
    with constants(rounding):
        fixed = rounding(images())
        assert rounding[0].parametrizations.weight[0].fixed.args[0].dtype == torch.int8
        assert rounding[3].parametrizations.bias[0].fixed.args[0].dtype == torch.int32
    step = rounding[6].int8_output.grid()[0]
    # A sum near the middle of two values may fall to either side.
    assert ((free - fixed).abs() > step / 2).float().mean() < 0.01
    assert (free - fixed).abs().max() <= 3 * step
    assert torch.equal(plain, fixed)
    assert torch.equal(rounding(images()), free)


def test_abn_in_training_keeps_its_statistics():
    norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), ABN(4))
    assert to_int8(norm, images()) == 1
    kept = norm[2].running_var.clone()
    norm.train()(images()).sum().backward()
    assert torch.equal(norm[2].running_var, kept)


def test_torchs_attention_is_left_alone():
    assert to_int8(nn.TransformerEncoderLayer(8, 2, 16), torch.rand(2, 3, 8)) == 2
