"""The number of classes reaches builders under the name they have for it; builders may be methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densekd.build.networks import round_layers, with_class_count
from densekd.build.resolve import import_dotted
from densekd.errors import UserError
from densekd.types import InputSpec

GIVEN = {"in_channels": 3, "num_classes": 7}


class Maker:
    @classmethod
    def make(cls, num_classes: int) -> nn.Module:
        return nn.Conv2d(3, num_classes, 1)


def ours(num_classes): ...


def smps(encoder, classes=1, **kwargs): ...


def huggings(num_labels): ...


def both(num_classes, classes): ...


def neither(**kwargs): ...


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        (ours, "num_classes"),
        (smps, "classes"),
        (huggings, "num_labels"),
        (both, "num_classes"),
        (neither, "num_classes"),
    ],
)
def test_the_name_of_the_class_count(builder, name):
    assert with_class_count(builder, {}, GIVEN) == {"in_channels": 3, name: 7}


def test_a_number_of_the_options_stays():
    assert with_class_count(smps, {"classes": 3}, GIVEN) == {"in_channels": 3}


def test_methods_have_dotted_paths():
    make = import_dotted(f"{__name__}.Maker.make", "model.name")
    assert make(5)(torch.rand(1, 3, 2, 2)).shape[1] == 5
    with pytest.raises(UserError, match=r"model\.name: .*Maker\.mak"):
        import_dotted(f"{__name__}.Maker.mak", "model.name")
    assert import_dotted("torch.nn.Conv2d", "model.name") is nn.Conv2d


def test_an_object_that_rounds_already_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    round_layers(network, InputSpec(size=(16, 16)), "model")
    keys = list(network.state_dict())
    round_layers(network, InputSpec(size=(16, 16)), "model")
    assert list(network.state_dict()) == keys
