from __future__ import annotations

import pytest
import torch
from torch import nn

from densekd.errors import UserError, WeightsError
from densekd.models import espnetv2, load_weights
from densekd.models.espnetv2 import CHANNELS
from tests.models.base import CLASSES, ModelTester


class TestESPNetv2(ModelTester):
    stride = 1
    aux = False

    def build(self, in_channels: int = 3) -> nn.Module:
        return espnetv2(CLASSES, width=0.5, in_channels=in_channels)


@pytest.mark.parametrize("width", sorted(CHANNELS))
def test_widths(width):
    """The sizes are those of the published files, which have 20 outputs, without the activations never called."""
    sizes = {0.5: 80230, 1.0: 233786, 1.5: 468010, 2.0: 788762}
    count = sum(p.numel() for p in espnetv2(19, width=width, background=True).parameters())
    assert count == sizes.get(width, count)


@pytest.mark.parametrize(
    ("classes", "width", "words"), [(5, 0.75, "width is 0.75; .* 2.0"), (1, 2.0, "2 or more")]
)
def test_what_cannot_be_built(classes, width, words):
    with pytest.raises(UserError, match=words):
        espnetv2(classes, width=width)


def test_the_last_class_is_not_returned():
    torch.manual_seed(0)
    whole = espnetv2(CLASSES, width=0.5).eval()
    less = espnetv2(CLASSES - 1, width=0.5, background=True).eval()
    load_weights(less, whole.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(less(images), whole(images)[:, :-1])
    with pytest.raises(WeightsError, match="checkpoint has 5 classes, the network 4"):
        load_weights(espnetv2(CLASSES - 1, width=0.5), whole.state_dict())


def test_activations_of_the_files_that_are_never_called():
    network = espnetv2(CLASSES, width=0.5)
    state = {
        **network.state_dict(),
        **{f"base_net.level{i}_0.eesp.module_act.weight": torch.rand(16) for i in (2, 3, 4)},
    }
    assert load_weights(network, state) == []
