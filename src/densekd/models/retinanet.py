"""RetinaNet: nine anchors a location. torchvision's heads on any timm backbone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from densekd.errors import UserError
from densekd.models._pyramid import GROUPS, Detector, pyramid_on
from densekd.models._timm_backbone import TimmBackbone

RATIOS = (0.5, 1.0, 2.0)
HEAD_CONVS = 4  # the number of convolutions in torchvision's heads, which is fixed


def anchors(strides: Sequence[int]) -> AnchorGenerator:
    """Three sizes, from 4 strides on, times three shapes: torchvision's (32 pixels and more at stride 8)."""
    sizes = tuple(tuple(int(4 * s * 2 ** (i / 3)) for i in range(3)) for s in strides)
    return AnchorGenerator(sizes, (RATIOS,) * len(sizes))


def retinanet_timm(
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
    """RetinaNet on a backbone by its timm name. Arguments as in `densekd.models.fcos.fcos_timm`, with at most four
    `head_convs`: torchvision's heads have no more.

    Source: Lin et al., *Focal Loss for Dense Object Detection* (ICCV 2017), with group norms in the heads, as
    torchvision's second version has and the paper has not.
    """
    if not 0 <= head_convs <= HEAD_CONVS:
        raise UserError(
            f"head_convs is {head_convs}; retinanet_timm takes torchvision's heads, with 0 to {HEAD_CONVS}"
        )
    maps = TimmBackbone(backbone, in_channels=in_channels, weights=backbone_weights)
    fpn, strides = pyramid_on(
        maps,
        backbone,
        pyramid_channels=pyramid_channels,
        extra_levels=extra_levels,
        finest=finest_stride,
    )
    grid = anchors(strides)
    head = RetinaNetHead(
        pyramid_channels,
        grid.num_anchors_per_location()[0],
        num_classes,
        norm_layer=partial(nn.GroupNorm, GROUPS),
    )
    for branch in (head.classification_head, head.regression_head):
        branch.conv = branch.conv[:head_convs]
    return Detector(
        maps,
        fpn,
        head,
        grid,
        strides=strides,
        kind="retinanet",
        num_classes=num_classes,
        pyramid_channels=pyramid_channels,
        input_spec=maps.input_spec,
        features=maps.feature_info("backbone."),
    )
