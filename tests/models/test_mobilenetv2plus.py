from __future__ import annotations

import torch
from torch import nn
from torchvision.models import mobilenet_v2

from densekd.models import mobilenetv2plus
from tests.models.base import CLASSES, ModelTester


class TestMobileNetV2Plus(ModelTester):
    def build(self, in_channels: int = 3) -> nn.Module:
        return mobilenetv2plus(CLASSES, in_channels=in_channels, width=0.35, pyramid_channels=16)


def test_torchvision_weights_fill_the_backbone(tmp_path) -> None:
    theirs = mobilenet_v2()
    torch.save(theirs.state_dict(), tmp_path / "mobilenet_v2.pth")
    ours = mobilenetv2plus(3, backbone_weights=tmp_path / "mobilenet_v2.pth")
    key = "features.17.conv.1.0.weight"
    assert torch.equal(ours.state_dict()[key], theirs.state_dict()[key])


def test_early_features_equal_torchvisions() -> None:
    theirs = mobilenet_v2().eval()
    ours = mobilenetv2plus(3).eval()
    ours.features[:7].load_state_dict(theirs.features[:7].state_dict())
    x = torch.rand(1, 3, 65, 97)
    with torch.no_grad():
        torch.testing.assert_close(ours.features[:7](x), theirs.features[:7](x))
