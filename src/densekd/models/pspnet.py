"""PSPNet on a dilated ResNet, in the layout of the paper's authors: their checkpoints load as they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from densekd.layers.abn import ABN
from densekd.layers.pyramid import PyramidPooling
from densekd.models._inputs import plain_input
from densekd.models.resnet import BasicBlock, Bottleneck, DilatedResNet
from densekd.models.weights import load_part, rename_prefixes
from densekd.types import Feature, InputSpec

# The Caffe mean, in the order and range of the authors' files.
AUTHORS_INPUT = InputSpec(
    mean=(104.00698793, 116.66876762, 122.67891434), std=(1.0, 1.0, 1.0), order="bgr", range=255.0
)


class PSPNet(DilatedResNet):
    """Dilated ResNet, pyramid pooling, 1x1 classifier, and an auxiliary head on ``layer3``.

    Source: Zhao et al., CVPR 2017; layout, norms (`ABN`) and keys of the authors of *Structured Knowledge Distillation
    for Dense Prediction*. Differs from their code: the auxiliary head runs in training only.

    Args:
        block, depths, in_channels, width: see `DilatedResNet`.
        num_classes: K.
        aux_head: whether to build the auxiliary head ``dsn``.

    Attributes:
        feature_info: the maps that can be tapped.
        pair_wise_tap: the map that the pair-wise term compares by default.
        input_spec: BGR, 0-255, minus the authors' mean.
    """

    pair_wise_tap = "pspmodule"
    # Authors' files hold the auxiliary head whether or not this network has one; ImageNet files the classifier.
    optional_prefixes = ("dsn.", "fc.")

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        num_classes: int,
        in_channels: int = 3,
        width: float = 1.0,
        aux_head: bool = True,
    ) -> None:
        super().__init__(block, depths, in_channels=in_channels, width=width)
        self.num_classes = num_classes
        channels = self.stage_channels
        hidden = channels[3] // 4
        self.pspmodule = PyramidPooling(channels[3], hidden)
        self.head = nn.Conv2d(hidden, num_classes, 1)
        self.dsn = (
            nn.Sequential(
                nn.Conv2d(channels[2], hidden, 3, padding=1),
                ABN(hidden),
                nn.Dropout2d(0.1),
                nn.Conv2d(hidden, num_classes, 1),
            )
            if aux_head
            else None
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.input_spec = AUTHORS_INPUT if in_channels == 3 else plain_input(in_channels)
        self.feature_info = [
            Feature(f"layer{i + 1}", c, s)
            for i, (c, s) in enumerate(zip(channels, (4, 8, 8, 8), strict=True))
        ] + [Feature("pspmodule", hidden, 8)]

    def forward(self, x: Tensor) -> Tensor | OrderedDict[str, Tensor]:
        """(N, in_channels, H, W) -> logits (N, K, h, w), h about H / 8; in training ``{"out", "aux"}``."""
        x = self.layer2(self.layer1(self.stem(x)))
        middle = self.layer3(x)
        out = self.head(self.pspmodule(self.layer4(middle)))
        if self.training and self.dsn is not None:
            return OrderedDict(out=out, aux=self.dsn(middle))
        return out

    @staticmethod
    def rename_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of the authors' teacher files (``head.0.*``, ``head.1.*``) -> the keys used here."""
        if not any(key.startswith("head.0.") for key in state):
            return state
        return rename_prefixes(state, {"head.0.": "pspmodule.", "head.1.": "head."})


def fill_backbone(network: PSPNet, weights: str | Path | None) -> PSPNet:
    if weights is not None:
        load_part(network, weights, without=("pspmodule.", "head.", "dsn."))
    return network


def pspnet_resnet18(
    num_classes: int,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    aux_head: bool = True,
    backbone_weights: str | Path | None = None,
) -> PSPNet:
    """The paper's student; ``width=0.5`` is its half-width form.

    Args:
        num_classes: K.
        in_channels: channels of the image.
        width: multiplies every channel count.
        aux_head: whether to build the auxiliary head on ``layer3``.
        backbone_weights: a file of deep-stem ImageNet weights; fills the backbone alone.
    """
    network = PSPNet(
        BasicBlock,
        (2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        aux_head=aux_head,
    )
    return fill_backbone(network, backbone_weights)


def pspnet_resnet101(
    num_classes: int,
    *,
    in_channels: int = 3,
    aux_head: bool = True,
    backbone_weights: str | Path | None = None,
) -> PSPNet:
    """The paper's teacher. Arguments as in `pspnet_resnet18`."""
    network = PSPNet(
        Bottleneck,
        (3, 4, 23, 3),
        num_classes=num_classes,
        in_channels=in_channels,
        aux_head=aux_head,
    )
    return fill_backbone(network, backbone_weights)
