"""Schedules by value, groups by name."""

import pytest
import torch
from torch import nn

from densekd.engine.optim import lr_factor, make_optimizer, parameter_groups, set_lr
from densekd.errors import UserError


def test_poly_is_the_fields():
    assert lr_factor(0, 100) == 1.0
    assert lr_factor(50, 100) == pytest.approx(0.5**0.9)
    assert lr_factor(99, 100) == pytest.approx(0.01**0.9)


def test_warm_up_rises_from_above_zero_to_one():
    values = [lr_factor(i, 100, warmup=4) for i in range(6)]
    assert values[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert values[5] < 1.0


def test_cosine_and_constant():
    assert lr_factor(50, 100, schedule="cosine") == pytest.approx(0.5)
    assert lr_factor(50, 100, schedule="constant") == 1.0
    with pytest.raises(ValueError, match="poly"):
        lr_factor(0, 1, schedule="step")


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_groups_scale_and_decay():
    groups = parameter_groups(
        network().named_parameters(),
        lr=0.1,
        weight_decay=0.5,
        groups=[("2.", 10.0, None)],
        decay_norms=False,
    )
    seen = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in groups}
    # first conv's weight; its bias and the norm; head weight; head bias
    assert seen == {(0.1, 0.5): 1, (0.1, 0.0): 3, (1.0, 0.5): 1, (1.0, 0.0): 1}


def test_a_prefix_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match="matches no parameter"):
        parameter_groups(
            network().named_parameters(), lr=1, weight_decay=0, groups=[("backbone", 0.1, None)]
        )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_set_lr_keeps_ratios(name):
    groups = parameter_groups(
        network().named_parameters(), lr=0.1, weight_decay=0, groups=[("2.", 10.0, None)]
    )
    optimizer = make_optimizer(groups, name)
    set_lr(optimizer, 0.5)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.05, 0.5])


def test_the_optimizer_state_survives_weights_only_loading(tmp_path):
    net = network()
    optimizer = make_optimizer(
        parameter_groups(net.named_parameters(), lr=0.1, weight_decay=0), "sgd"
    )
    net(torch.ones(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    assert optimizer.param_groups[0]["base_lr"] == 0.1
