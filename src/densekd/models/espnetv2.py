"""ESPNetv2 for segmentation, with the keys of the Cityscapes checkpoints that its authors published."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.errors import UserError
from densekd.layers.eesp import EESP, EESPDown, GatedConv, SizePyramid, conv_norm_act, norm_act
from densekd.models._inputs import plain_input
from densekd.ops.resize import resize_map
from densekd.types import Feature, InputSpec

# Width -> channels at strides 2, 4, 8 and 16.
CHANNELS = {
    0.5: (16, 32, 64, 128),
    1.0: (32, 64, 128, 256),
    1.25: (32, 80, 160, 320),
    1.5: (32, 96, 192, 384),
    2.0: (32, 128, 256, 512),
}
DECODER = (64, 48, 32)  # channels at strides 16, 8 and 4
PYRAMID = 16  # the most channels that a pyramid of the decoder has at each of its sizes


class ESPNetv2Encoder(nn.Module):
    """Levels at strides 2, 4, 8 and 16; the image itself, pooled, joins each but the first.

    Args:
        channels: of the four levels.
        in_channels: channels of the image.
    """

    def __init__(self, channels: tuple[int, int, int, int], in_channels: int) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = channels
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.level1 = conv_norm_act(in_channels, half, 3, stride=2)
        self.level2_0 = EESPDown(half, quarter, image_channels=in_channels, largest=4)
        self.level3_0 = EESPDown(quarter, eighth, image_channels=in_channels, largest=4)
        self.level3 = nn.Sequential(*(EESP(eighth, eighth, largest=4) for _ in range(3)))
        self.level4_0 = EESPDown(eighth, sixteenth, image_channels=in_channels, largest=4)
        self.level4 = nn.Sequential(*(EESP(sixteenth, sixteenth, largest=3) for _ in range(7)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, in_channels, H, W) -> the maps of the levels, fine to coarse."""
        half = self.level1(x)
        image = self.pool(self.pool(x))
        quarter = self.level2_0(half, image)
        image = self.pool(image)
        eighth = self.level3(self.level3_0(quarter, image))
        image = self.pool(image)
        return half, quarter, eighth, self.level4(self.level4_0(eighth, image))


class ESPNetv2(nn.Module):
    """An encoder of `EESP` blocks to stride 16, and a decoder of pyramids back to stride 2: logits at full size.

    Source: Mehta et al., CVPR 2019; the decoder is that of the authors' later code (EdgeNets), to which the published
    files belong. Differs from it: it takes any image size (maps are resized to the skip that they join), and the three
    activations that are in the files and that the authors' forward never calls (``level*_0.eesp.module_act``) are left
    out.

    Args:
        num_classes: K, at least 2.
        width: of the channels, one of `CHANNELS`.
        in_channels: channels of the image.
        background: there is one class more, the last, which is not returned. The published files have it: Cityscapes'
            19 classes and everything else.

    Raises:
        UserError: another width, or too few classes.
    """

    pair_wise_tap = "base_net.level4"
    optional_prefixes = tuple(f"base_net.level{i}_0.eesp.module_act." for i in (2, 3, 4))

    def __init__(
        self,
        num_classes: int,
        *,
        width: float = 2.0,
        in_channels: int = 3,
        background: bool = False,
    ) -> None:
        super().__init__()
        if width not in CHANNELS:
            raise UserError(f"width is {width}; expected one of {', '.join(map(str, CHANNELS))}")
        if num_classes < 2:
            raise UserError(f"num_classes is {num_classes}; ESPNetv2 needs 2 or more")
        self.num_classes = num_classes
        self.input_spec = InputSpec() if in_channels == 3 else plain_input(in_channels)
        half, quarter, eighth, sixteenth = CHANNELS[width]
        self.base_net = ESPNetv2Encoder(CHANNELS[width], in_channels)
        outputs = num_classes + background
        narrow = min(outputs // 2, PYRAMID)
        self.bu_dec_l1 = SizePyramid(sixteenth, narrow, DECODER[0], last=False)
        self.bu_dec_l2 = SizePyramid(DECODER[0], narrow, DECODER[1], last=False)
        self.bu_dec_l3 = SizePyramid(DECODER[1], narrow, DECODER[2], last=False)
        self.bu_dec_l4 = SizePyramid(DECODER[2], narrow, outputs, last=True)
        self.merge_enc_dec_l2 = GatedConv(eighth, DECODER[0])
        self.merge_enc_dec_l3 = GatedConv(quarter, DECODER[1])
        self.merge_enc_dec_l4 = GatedConv(half, DECODER[2])
        self.bu_br_l2 = nn.Sequential(*norm_act(DECODER[0]))
        self.bu_br_l3 = nn.Sequential(*norm_act(DECODER[1]))
        self.bu_br_l4 = nn.Sequential(*norm_act(DECODER[2]))
        self.feature_info = [
            Feature("base_net.level1", half, 2),
            Feature("base_net.level2_0", quarter, 4),
            Feature("base_net.level3", eighth, 8),
            Feature("base_net.level4", sixteenth, 16),
            Feature("bu_dec_l3", DECODER[2], 4),
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, K, H, W)."""
        half, quarter, eighth, sixteenth = self.base_net(x)
        y = self.bu_dec_l1(sixteenth)
        y = self.bu_dec_l2(self.bu_br_l2(_joined(self.merge_enc_dec_l2(eighth), y)))
        y = self.bu_dec_l3(self.bu_br_l3(_joined(self.merge_enc_dec_l3(quarter), y)))
        y = self.bu_dec_l4(self.bu_br_l4(_joined(self.merge_enc_dec_l4(half), y)))
        return resize_map(y[:, : self.num_classes], (x.shape[-2], x.shape[-1]))


def _joined(skip: Tensor, coarse: Tensor) -> Tensor:
    return skip + resize_map(coarse, (skip.shape[-2], skip.shape[-1]))


def espnetv2(
    num_classes: int, *, width: float = 2.0, in_channels: int = 3, background: bool = False
) -> ESPNetv2:
    """See `ESPNetv2`."""
    return ESPNetv2(num_classes, width=width, in_channels=in_channels, background=background)
