"""A student compared through adapters."""

import torch
from torch import nn

from densekd.distill.student import Student
from densekd.models.taps import Taps


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))


def test_an_adapted_feature_joins_the_others():
    network = make_network()
    adapter = nn.Conv2d(4, 7, 1)
    student = Student(Taps(network, {"wide": "0"}), {"mimic": ("wide", adapter)})
    output = student(torch.rand(2, 3, 5, 6))
    assert output.prediction.shape == (2, 2, 5, 6)
    assert torch.equal(output.features["mimic"], adapter(output.features["wide"]))
    assert student.model is network


def test_one_adapter_serves_all_levels():
    class Pyramid(nn.Module):
        def forward(self, x):
            return [x, x[..., ::2, ::2]]

    network = nn.Sequential(Pyramid())
    student = Student(Taps(network, {"fpn": "0:*"}), {"mimic": ("fpn", nn.Conv2d(3, 5, 1))})
    maps = student(torch.rand(1, 3, 8, 8)).features["mimic"]
    assert [tuple(m.shape) for m in maps] == [(1, 5, 8, 8), (1, 5, 4, 4)]


def test_adapters_are_no_part_of_the_network():
    network = make_network()
    keys = set(network.state_dict())
    Student(Taps(network, {"wide": "0"}), {"mimic": ("wide", nn.Conv2d(4, 7, 1))})
    assert set(network.state_dict()) == keys
