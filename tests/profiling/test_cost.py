"""Parameters and multiply-accumulates against counts by hand."""

import pytest
import torch
from torch import nn

from densekd.profiling import count_macs, count_parameters


@pytest.mark.parametrize(
    ("layer", "macs", "parameters"),
    [
        # out pixels x out channels x in channels / groups x kernel
        (nn.Conv2d(3, 8, 3, padding=1), 16 * 24 * 8 * 3 * 9, 8 * 3 * 9 + 8),
        (nn.Conv2d(3, 8, 3, padding=1, bias=False), 16 * 24 * 8 * 3 * 9, 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), 8 * 12 * 8 * 3 * 9, 8 * 3 * 9 + 8),
        (nn.Conv2d(3, 8, 3, padding=2, dilation=2), 16 * 24 * 8 * 3 * 9, 8 * 3 * 9 + 8),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 16 * 24 * 6 * 1 * 9, 6 * 9 + 6),
        (nn.Conv2d(3, 8, 1), 16 * 24 * 8 * 3, 8 * 3 + 8),
        # a transposed convolution: in pixels x in channels x out channels x kernel
        (nn.ConvTranspose2d(3, 8, 2, stride=2), 16 * 24 * 3 * 8 * 4, 8 * 3 * 4 + 8),
    ],
    ids=["plain", "no_bias", "stride", "dilation", "groups", "pointwise", "transposed"],
)
def test_one_layer(layer, macs, parameters):
    assert count_macs(layer, 3, (16, 24)) == macs
    assert count_parameters(layer) == parameters


def test_layers_add_up():
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    assert count_macs(network, 4, (10, 10)) == 100 * (8 * 4 * 9 + 2 * 8)
    assert count_parameters(network) == 8 * 4 * 9 + 2 * 8 + (2 * 8 + 2)


def test_a_linear_layer_after_pooling():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    assert count_macs(network, 3, (8, 8)) == 15


def test_a_shared_weight_counts_once():
    shared = nn.Conv2d(4, 4, 1, bias=False)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    assert count_parameters(network) == 16
    assert count_macs(network, 4, (2, 2)) == 2 * 16 * 4


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_network_as_it_was(training):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train(training)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    count_macs(network, 3, (8, 8))
    assert network.training is training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_a_paper_figure():
    """PSPNet-R18 has 13.07 M parameters in the paper's table (without the auxiliary head's share, within a tenth)."""
    from densekd.models.pspnet import pspnet_resnet18

    assert count_parameters(pspnet_resnet18(19)) == pytest.approx(13.07e6, rel=0.1)
