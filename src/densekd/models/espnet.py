"""ESPNet and ESPNet-C, with the keys of the checkpoints that the paper's authors published."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.layers.esp import (
    NORM_EPS,
    Conv,
    ConvNormAct,
    ESPBlock,
    ESPDown,
    ImagePyramid,
    NormAct,
)
from densekd.models._inputs import plain_input
from densekd.models.weights import rename_prefixes
from densekd.ops.resize import resize_map
from densekd.types import Feature, InputSpec

# CamVid's statistics, with which the published checkpoints were trained.
CAMVID_INPUT = InputSpec(
    mean=(73.18188461, 82.93553322, 72.41519599),
    std=(45.3199, 46.1528, 44.9148),
    order="bgr",
    range=255.0,
    size=(360, 480),
)


class ESPEncoder(nn.Module):
    """Three levels at strides 2, 4, 8; the image itself, resized, joins the first two.

    Args:
        in_channels: channels of the image.
        p: the number of ESP blocks at stride 4.
        q: the number of ESP blocks at stride 8.
    """

    pair_wise_tap = "b3"

    def __init__(self, *, num_classes: int, in_channels: int, p: int, q: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.level1 = ConvNormAct(in_channels, 16, 3, stride=2)
        self.sample1 = ImagePyramid(1)
        self.sample2 = ImagePyramid(2)
        self.b1 = NormAct(16 + in_channels)
        self.level2_0 = ESPDown(16 + in_channels, 64)
        self.level2 = nn.Sequential(*(ESPBlock(64, 64) for _ in range(p)))
        self.b2 = NormAct(128 + in_channels)
        self.level3_0 = ESPDown(128 + in_channels, 128)
        self.level3 = nn.Sequential(*(ESPBlock(128, 128) for _ in range(q)))
        self.b3 = NormAct(256)
        self.input_spec = CAMVID_INPUT if in_channels == 3 else plain_input(in_channels)
        self.feature_info = [
            Feature("b1", 16 + in_channels, 2),
            Feature("b2", 128 + in_channels, 4),
            Feature("b3", 256, 8),
        ]

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, in_channels, H, W) -> maps at strides 2, 4, 8 with 16 + in_channels, 128 + in_channels, 256 channels."""
        half = self.b1(torch.cat([self.level1(images), self.sample1(images)], dim=1))
        down = self.level2_0(half)
        quarter = self.b2(torch.cat([self.level2(down), down, self.sample2(images)], dim=1))
        down = self.level3_0(quarter)
        eighth = self.b3(torch.cat([down, self.level3(down)], dim=1))
        return half, quarter, eighth


class ESPNetC(ESPEncoder):
    """The encoder with a 1x1 classifier: logits at stride 8.

    Source: Mehta et al., ECCV 2018, section 4 ("ESPNet-C").

    Args:
        num_classes: K.
        in_channels: channels of the image.
        p, q: depths of the second and third level.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, p: int = 2, q: int = 8) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, p=p, q=q)
        self.classifier = Conv(256, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, K, H / 8, W / 8), rounded up."""
        return self.classifier(self.encode(x)[2])


class ESPNet(ESPEncoder):
    """The encoder with the light decoder (reduce, upsample, merge): logits at full size.

    Source: Mehta et al., ECCV 2018. Keys as in the code of the authors of *Structured Knowledge Distillation for Dense
    Prediction*: the encoder stands at the top level (``b3``, not ``encoder.b3``) and its classifier is
    ``classifier_1``. Differs from the authors' code: it takes any image size (theirs needs multiples of 8); maps are
    resized to the skip that they join, and the logits to the image.

    Args:
        num_classes: K, at least 5 (the decoder's ESP block splits K channels in five).
        in_channels: channels of the image.
        p, q: depths of the second and third level.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, p: int = 2, q: int = 8) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, p=p, q=q)
        k = num_classes
        self.classifier_1 = Conv(256, k, 1)
        self.level3_C = Conv(128 + in_channels, k, 1)
        self.br = nn.BatchNorm2d(k, eps=NORM_EPS)
        self.conv = ConvNormAct(16 + in_channels + k, k, 3)
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(k, k, 2, stride=2, bias=False))
        self.combine_l2_l3 = nn.Sequential(NormAct(2 * k), ESPBlock(2 * k, k, residual=False))
        self.up_l2 = nn.Sequential(nn.ConvTranspose2d(k, k, 2, stride=2, bias=False), NormAct(k))
        self.classifier = nn.ConvTranspose2d(k, k, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, K, H, W)."""
        half, quarter, eighth = self.encode(x)
        y = self.up_l3(self.br(self.classifier_1(eighth)))
        y = torch.cat([self.level3_C(quarter), fit(y, quarter)], dim=1)
        y = self.up_l2(self.combine_l2_l3(y))
        y = self.conv(torch.cat([fit(y, half), half], dim=1))
        return fit(self.classifier(y), x)

    @staticmethod
    def rename_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of the original ESPNet repository (``encoder.*``) -> the keys used here."""
        if not any(key.startswith("encoder.") for key in state):
            return state
        return rename_prefixes(state, {"encoder.classifier.": "classifier_1.", "encoder.": ""})


def fit(x: Tensor, other: Tensor) -> Tensor:
    """`x` at the size of `other`: odd sizes come back one pixel larger from the upsampling."""
    return resize_map(x, (other.shape[-2], other.shape[-1]))


def espnet(num_classes: int, *, in_channels: int = 3, p: int = 2, q: int = 8) -> ESPNet:
    """See `ESPNet`."""
    return ESPNet(num_classes, in_channels=in_channels, p=p, q=q)


def espnet_c(num_classes: int, *, in_channels: int = 3, p: int = 2, q: int = 8) -> ESPNetC:
    """See `ESPNetC`."""
    return ESPNetC(num_classes, in_channels=in_channels, p=p, q=q)
