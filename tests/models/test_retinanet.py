from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen

from densekd.errors import UserError
from densekd.models._pyramid import Detector
from densekd.models.retinanet import retinanet_timm
from tests.models.detectors import CLASSES, DetectorTester


class TestRetinaNetSmall(DetectorTester):
    kind = "retinanet"
    anchors = 9

    def build(self, in_channels: int = 3) -> Detector:
        return retinanet_timm(
            CLASSES,
            backbone="resnet10t",
            in_channels=in_channels,
            pyramid_channels=32,
            extra_levels=0,
            head_convs=1,
        )


def test_anchors_and_heads_are_torchvisions() -> None:
    torch.manual_seed(0)
    network = retinanet_timm(CLASSES, backbone="mobilenetv3_small_050", pyramid_channels=32).eval()
    default = _default_anchorgen()
    for ours, theirs in zip(network.anchors.cell_anchors, default.cell_anchors, strict=True):
        assert torch.equal(ours, theirs)
    head = RetinaNetHead(32, 9, CLASSES, partial(nn.GroupNorm, 32)).eval()
    head.load_state_dict(network.head.state_dict())
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        raw = network(x)
        heads = head(network.fpn(network.backbone(x)[-3:]))
    # Channel a * K + k of a map is class k of anchor a at that location.
    first = heads["cls_logits"][:, : 16 * 16 * 9].view(2, 16, 16, 9, CLASSES)
    assert torch.equal(raw.logits[0][:, 7 * CLASSES + 3], first[:, :, :, 7, 3])
    last = heads["bbox_regression"][:, -9:].view(2, 1, 1, 9, 4)
    assert torch.equal(raw.boxes[-1][:, 2 * 4 + 1], last[:, :, :, 2, 1])


def test_pyramid_channels_fit_the_norms() -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        retinanet_timm(3, backbone="resnet10t", pyramid_channels=40)


@pytest.mark.parametrize("head_convs", [5, -1])
def test_heads_are_no_longer_than_torchvisions(head_convs: int) -> None:
    with pytest.raises(UserError, match=rf"head_convs is {head_convs}; .* 0 to 4"):
        retinanet_timm(3, backbone="resnet10t", pyramid_channels=32, head_convs=head_convs)
