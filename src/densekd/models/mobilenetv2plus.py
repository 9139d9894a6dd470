"""MobileNetV2Plus: a dilated MobileNetV2 with a pyramid head."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from densekd.layers.abn import ABN
from densekd.layers.pyramid import PyramidPooling
from densekd.models._inputs import plain_input
from densekd.models.weights import load_part
from densekd.types import Feature, InputSpec

# The positions in torchvision's `features` where strides 2, 4, 8 end; then the blocks that lose their stride.
STAGES = (1, 3, 6, 13, 17)
DILATIONS = ((7, 14, 2), (14, 18, 4))


class MobileNetV2Plus(nn.Module):
    """torchvision's MobileNetV2 blocks at output stride 8, pyramid pooling, 1x1 classifier, auxiliary head.

    Source: one of the students of *Structured Knowledge Distillation for Dense Prediction*, after Sandler et al.,
    *MobileNetV2* (CVPR 2018) and the LightNet project. Differs from LightNet's: pyramid pooling in place of dilated
    (ASPP) branches and squeeze-excitation, dilations 2 and 4 in place of 2, 4, 8, 16, and no skips from the first
    stages; so it will not repeat the paper's scores exactly.

    Args:
        num_classes: K.
        in_channels: channels of the image.
        width: multiplies every channel count of the backbone.
        pyramid_channels: the channels of the pyramid module's result.
        aux_head: whether to build the auxiliary head (on the 96-channel stage).
    """

    pair_wise_tap = "pyramid"
    optional_prefixes = ("aux.",)

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        width: float = 1.0,
        pyramid_channels: int = 256,
        aux_head: bool = True,
    ) -> None:
        super().__init__()
        # Imported here, because the import takes longer than all others of this package.
        from torchvision.models import mobilenet_v2

        self.num_classes = num_classes
        # without the classifier's 1x1 to 1280
        features: Any = mobilenet_v2(width_mult=width).features[:-1]
        if in_channels != 3:
            first = features[0][0]
            features[0][0] = nn.Conv2d(
                in_channels, first.out_channels, 3, stride=2, padding=1, bias=False
            )
            nn.init.kaiming_normal_(features[0][0].weight, mode="fan_out")
        for start, end, dilation in DILATIONS:
            dilate(features[start:end], dilation)
        self.features = features
        channels: list[int] = [features[i].out_channels for i in STAGES]
        self.pyramid = PyramidPooling(channels[4], pyramid_channels)
        self.head = nn.Conv2d(pyramid_channels, num_classes, 1)
        hidden = max(channels[3], 32)
        self.aux = (
            nn.Sequential(
                nn.Conv2d(channels[3], hidden, 3, padding=1, bias=False),
                ABN(hidden),
                nn.Dropout2d(0.1),
                nn.Conv2d(hidden, num_classes, 1),
            )
            if aux_head
            else None
        )
        self.input_spec = InputSpec() if in_channels == 3 else plain_input(in_channels)
        self.feature_info = [
            Feature(f"features.{i}", c, s)
            for i, c, s in zip(STAGES, channels, (2, 4, 8, 8, 8), strict=True)
        ] + [Feature("pyramid", pyramid_channels, 8)]

    def forward(self, x: Tensor) -> Tensor | OrderedDict[str, Tensor]:
        """(N, in_channels, H, W) -> logits (N, K, H / 8, W / 8), rounded up; in training ``{"out", "aux"}``."""
        middle = x
        for i, block in enumerate(self.features):
            x = block(x)
            if i == STAGES[3]:
                middle = x
        out = self.head(self.pyramid(x))
        if self.training and self.aux is not None:
            return OrderedDict(out=out, aux=self.aux(middle))
        return out


def dilate(blocks: nn.Sequential, dilation: int) -> None:
    """Take the stride out of `blocks` and dilate their depthwise kernels instead.

    The strided convolution itself gets half of the dilation, as in DeepLab, because its input is not yet subsampled.
    """
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                spread = dilation
                if module.stride == (2, 2):
                    module.stride = (1, 1)
                    spread = dilation // 2
                module.dilation = module.padding = (spread, spread)


def mobilenetv2plus(
    num_classes: int,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    pyramid_channels: int = 256,
    aux_head: bool = True,
    backbone_weights: str | Path | None = None,
) -> MobileNetV2Plus:
    """See `MobileNetV2Plus`.

    Args:
        backbone_weights: a file of torchvision's ``mobilenet_v2`` weights; fills the backbone alone.
    """
    network = MobileNetV2Plus(
        num_classes,
        in_channels=in_channels,
        width=width,
        pyramid_channels=pyramid_channels,
        aux_head=aux_head,
    )
    if backbone_weights is not None:
        load_part(network, backbone_weights, without=("pyramid.", "head.", "aux."))
    return network
