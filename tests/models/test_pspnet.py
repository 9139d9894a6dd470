from __future__ import annotations

import pytest
import torch
from torch import nn

from densekd.errors import WeightsError
from densekd.models import PSPNet, Taps, load_weights, pspnet_resnet18, pspnet_resnet101
from densekd.models.resnet import BasicBlock, Bottleneck
from densekd.types import InputSpec
from tests.golden_rule import golden_shapes, golden_state, load_golden
from tests.models.base import CLASSES, ModelTester

AS_IS = InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class TestResNet18(ModelTester):
    def build(self, in_channels: int = 3) -> nn.Module:
        return pspnet_resnet18(CLASSES, in_channels=in_channels, width=0.5)


class TestBottlenecks(ModelTester):
    def build(self, in_channels: int = 3) -> nn.Module:
        return PSPNet(
            Bottleneck, (1, 1, 1, 1), num_classes=CLASSES, in_channels=in_channels, width=0.25
        )


@pytest.mark.parametrize(
    ("name", "build"), [("pspnet_r18", pspnet_resnet18), ("pspnet_r101", pspnet_resnet101)]
)
def test_equals_the_authors_network(name, build) -> None:
    network = build(19)
    state = golden_state(golden_shapes(name))
    assert set(network.state_dict()) == set(state)
    network.load_state_dict(state, strict=True)
    network.eval().requires_grad_(False)
    images = torch.sin(torch.arange(3 * 97 * 129, dtype=torch.float64) * 0.0123 + 1)
    images = images.view(1, 3, 97, 129).float()
    taps = {"psp": "pspmodule", **{f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}}
    output = Taps(network, taps, AS_IS)(images)
    given = {**output.features, "logits": output.prediction}
    given["aux_logits"] = network.dsn(output.features["layer3"])
    golden = load_golden("seed_pspnet")
    for key, value in given.items():
        expected = golden[f"{name}.{key}"]
        value = value[:, : expected.shape[1]]
        assert value.shape == expected.shape, key
        assert (value - expected).norm() <= 1e-5 * expected.norm(), key


def test_512_gives_65() -> None:
    network = pspnet_resnet18(2, width=0.25).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 512, 512)).shape == (1, 2, 65, 65)


def test_half_width_has_the_papers_size() -> None:
    count = sum(p.numel() for p in pspnet_resnet18(19, width=0.5).parameters())
    assert round(count / 1e6, 2) == 3.27
    count = sum(p.numel() for p in pspnet_resnet18(19).parameters())
    assert round(count / 1e6, 2) == 13.07


def small(**options) -> PSPNet:
    return PSPNet(BasicBlock, (1, 1, 1, 1), num_classes=3, width=0.125, **options)


def test_authors_teacher_keys() -> None:
    network = small()
    theirs = {}
    for key, value in network.state_dict().items():
        key = f"head.1.{key[5:]}" if key.startswith("head.") else key
        key = key.replace("pspmodule.", "head.0.")
        theirs[f"module.{key}"] = torch.full_like(value, 0.5)
    theirs["module.fc.weight"] = torch.zeros(10, 8)
    assert load_weights(network, theirs) == []
    assert all((v == 0.5).all() for v in network.state_dict().values())
    # A network without the auxiliary head takes the same file.
    assert load_weights(small(aux_head=False), theirs) == []


def test_backbone_file_fills_the_backbone_alone(tmp_path) -> None:
    source = pspnet_resnet18(19, width=0.5).state_dict()
    heads = ("pspmodule.", "head.", "dsn.")
    file = {k: v for k, v in source.items() if not k.startswith(heads)}
    torch.save({**file, "fc.weight": torch.zeros(1000, 256)}, tmp_path / "imagenet.pth")
    network = pspnet_resnet18(3, width=0.5, backbone_weights=tmp_path / "imagenet.pth")
    assert torch.equal(network.layer4[1].conv2.weight, source["layer4.1.conv2.weight"])
    with pytest.raises(WeightsError, match=r"other shapes|another network"):
        pspnet_resnet18(3, width=1.0, backbone_weights=tmp_path / "imagenet.pth")
