"""What the one-stage detectors share: a feature pyramid, heads on every level, anchors at true strides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from densekd.errors import UserError
from densekd.models._timm_backbone import TimmBackbone
from densekd.models.weights import rename_prefixes
from densekd.types import DetectorOutput, Feature, InputSpec

# The category ids that COCO's detection files use, out of 1 to 90.
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
GROUPS = 32  # the groups of the heads' norms, in torchvision and in the papers' code


class FeaturePyramid(FeaturePyramidNetwork):
    """torchvision's pyramid with its keys, from a list of maps to a list of levels, fine to coarse.

    Args:
        in_channels: the channels of each map, fine to coarse.
        channels: the channels of every level.
        extra_levels: 0, or 2 for P6 and P7, strided convolutions on P5 (as in FCOS; RetinaNet's paper takes C5).
    """

    def __init__(self, in_channels: Sequence[int], channels: int, extra_levels: int = 2) -> None:
        if extra_levels not in (0, 2):
            raise UserError(
                f"extra_levels is {extra_levels}; expected 2 (P6 and P7 on top) or 0 (the backbone's strides alone)"
            )
        extra = LastLevelP6P7(channels, channels) if extra_levels else None
        super().__init__(list(in_channels), channels, extra)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:  # type: ignore[override]
        """Maps (N, C_i, h_i, w_i), fine to coarse -> levels (N, channels, h_i, w_i), the extra ones last."""
        return list(super().forward(OrderedDict((str(i), m) for i, m in enumerate(x))).values())


class Detector(nn.Module):
    """A backbone, a feature pyramid, and one of torchvision's dense heads on every level.

    It takes images of any size, without padding: anchors lie at multiples of each level's own stride. (torchvision
    takes image side // map side for the stride, which is the same where sides are multiples of the coarsest stride, and
    drifts elsewhere.) As in torchvision, the first anchor's centre is the image's corner (0, 0), not half a stride
    in. It returns the same in training and in evaluation, and knows no target, threshold or NMS.

    Args:
        backbone: image -> list (or ordered dict) of maps, fine to coarse.
        fpn: the pyramid on those maps.
        head: torchvision's ``FCOSHead`` or ``RetinaNetHead``.
        anchors: a generator with one entry a level.
        strides: the stride of each level.
        kind: ``"fcos"`` or ``"retinanet"``.
        num_classes: K; there is no background class.
        pyramid_channels: the channels of every level.
        input_spec: the input that the backbone expects.
        features: the backbone's maps, under their paths in this network.

    Attributes:
        pair_wise_tap: every level of the pyramid.
        feature_info: the maps that can be tapped.
    """

    pair_wise_tap = "fpn:*"

    def __init__(
        self,
        backbone: nn.Module,
        fpn: FeaturePyramid,
        head: nn.Module,
        anchors: AnchorGenerator,
        *,
        strides: Sequence[int],
        kind: str,
        num_classes: int,
        pyramid_channels: int,
        input_spec: InputSpec,
        features: Sequence[Feature] = (),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.kind = kind
        self.strides = list(strides)
        self.input_spec = input_spec
        self.backbone = backbone
        self.fpn = fpn
        self.head = head
        self.anchors = anchors
        self.feature_info = [
            *features,
            *(Feature(f"fpn:{i}", pyramid_channels, s) for i, s in enumerate(self.strides)),
        ]

    def forward(self, x: Tensor) -> DetectorOutput:
        """(N, C, H, W) -> the raw outputs of each level, and the anchors in pixels of this input."""
        maps = self.backbone(x)
        if isinstance(maps, dict):
            maps = list(maps.values())
        # A timm backbone also returns its finer maps, which have no level.
        levels = self.fpn(maps[len(maps) - len(self.fpn.inner_blocks) :])
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        raw = self.head(levels)
        centerness = raw.get("bbox_ctrness")
        return DetectorOutput(
            logits=by_level(raw["cls_logits"], sizes),
            boxes=by_level(raw["bbox_regression"], sizes),
            centerness=None if centerness is None else by_level(centerness, sizes),
            anchors=self.grid(sizes, x.device),
            kind=self.kind,
        )

    def grid(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Anchors (h * w * A, 4) float32 of levels with these map sizes."""
        # float32 under autocast too: bfloat16 cannot count pixels above 256.
        self.anchors.set_cell_anchors(torch.float32, device)
        strides = [[s, s] for s in self.strides]
        return self.anchors.grid_anchors([list(size) for size in sizes], strides)  # type: ignore[arg-type]

    def rename_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keys of torchvision's detectors (and of its first pyramids, ``inner_blocks.0.weight``) -> the keys used here.

        torchvision has 91 outputs for COCO, one for each category id. A network of 80 classes takes those of the 80 ids
        in use, in ascending order, as `densekd.data.Coco` numbers its classes.
        """
        if not any(key.startswith("backbone.fpn.") for key in state):
            return state  # our own keys: a timm backbone has a ``backbone.body`` of its own
        state = rename_prefixes(state, {"backbone.body.": "backbone.", "backbone.fpn.": "fpn."})
        state = {first_pyramid(key): value for key, value in state.items()}
        for key in ("weight", "bias"):
            name = f"head.classification_head.cls_logits.{key}"
            value, wanted = state.get(name), self.head.state_dict()[name.removeprefix("head.")]
            if value is not None and self.num_classes == 80 and len(value) * 80 == len(wanted) * 91:
                by_class = value.unflatten(0, (-1, 91))  # anchor-major
                state[name] = by_class[:, list(COCO_IDS)].flatten(0, 1)
        return state


def first_pyramid(key: str) -> str:
    parts = key.split(".")
    if len(parts) == 4 and parts[0] == "fpn" and parts[1] in ("inner_blocks", "layer_blocks"):
        parts.insert(3, "0")
    return ".".join(parts)


def by_level(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """torchvision's (N, sum of h * w * A, C) -> views (N, A * C, h, w), one a level, anchor-major."""
    n, total, c = x.shape
    a = total // sum(h * w for h, w in sizes)
    parts = x.split([h * w * a for h, w in sizes], dim=1)
    return [
        part.view(n, h, w, a * c).permute(0, 3, 1, 2)
        for part, (h, w) in zip(parts, sizes, strict=True)
    ]


def pyramid_on(
    backbone: TimmBackbone, name: str, *, pyramid_channels: int, extra_levels: int, finest: int
) -> tuple[FeaturePyramid, list[int]]:
    """The pyramid on a backbone's maps of stride `finest` and coarser, and the strides of its levels.

    Raises:
        UserError: the backbone has no such map, two maps of one stride (vision transformers), or `pyramid_channels`
            does not fit the heads' norms.
    """
    check_channels(pyramid_channels)
    if finest not in backbone.strides or len(set(backbone.strides)) < len(backbone.strides):
        raise UserError(
            f"backbone {name!r} gives maps of strides {backbone.strides}; a detector needs one map a stride from "
            f"finest_stride={finest} on: take another, such as resnet18, mobilenetv2_100 or tf_efficientnet_lite0"
        )
    first = backbone.strides.index(finest)
    fpn = FeaturePyramid(backbone.channels[first:], pyramid_channels, extra_levels)
    strides = backbone.strides[first:]
    return fpn, strides + [strides[-1] * 2 ** (i + 1) for i in range(extra_levels)]


def check_channels(pyramid_channels: int) -> None:
    if pyramid_channels < GROUPS or pyramid_channels % GROUPS:
        raise UserError(
            f"pyramid_channels is {pyramid_channels}; the heads' group norms have {GROUPS} groups: "
            f"give a multiple of {GROUPS}"
        )
