"""torchvision's own one-stage detectors: ``{name: torchvision, options: {arch: fcos_resnet50_fpn}}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from densekd.errors import UserError
from densekd.models._pyramid import by_level
from densekd.types import DetectorOutput, InputSpec

KINDS = {
    "fcos_resnet50_fpn": "fcos",
    "retinanet_resnet50_fpn": "retinanet",
    "retinanet_resnet50_fpn_v2": "retinanet",
    "ssd300_vgg16": "ssd",
    "ssdlite320_mobilenet_v3_large": "ssd",
}
FINEST = 8  # the stride of the first level of FCOS and RetinaNet


class TorchvisionDetector(nn.Module):
    """The backbone and the head of a torchvision detector under their own names: the keys are those of torchvision.

    torchvision's detectors want targets in training and give decoded boxes in evaluation. This one returns the raw
    outputs of all levels in both, as `densekd.models.fcos` has it; the task has targets, thresholds and NMS. Anchors of
    FCOS and RetinaNet lie at multiples of each level's own stride; torchvision's are there where the image's sides are
    multiples of the coarsest (128), and drift elsewhere. SSD's lie at shares of the image.

    Args:
        detector: what torchvision built.
        kind: ``"fcos"``, ``"retinanet"`` or ``"ssd"``.
        num_classes: K, without a background class.

    Attributes:
        pair_wise_tap: every level of the backbone's pyramid.
    """

    pair_wise_tap = "backbone:*"

    def __init__(self, detector: Any, kind: str, num_classes: int) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.head
        self.anchors = detector.anchor_generator
        self.kind = kind
        self.num_classes = num_classes
        transform = detector.transform
        self.input_spec = InputSpec(mean=transform.image_mean, std=transform.image_std)

    def forward(self, images: Tensor) -> DetectorOutput:
        """(N, C, H, W) -> the raw outputs of each level, and the anchors in pixels of this input."""
        maps = self.backbone(images)
        levels = list(maps.values()) if isinstance(maps, dict) else [maps]
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        raw = self.head(levels)
        anchors = self._grid(images, levels, sizes)
        centerness = raw.get("bbox_ctrness")
        return DetectorOutput(
            logits=split_levels(raw["cls_logits"], sizes, anchors),
            boxes=split_levels(raw["bbox_regression"], sizes, anchors),
            centerness=None if centerness is None else by_level(centerness, sizes),
            anchors=anchors,
            kind=self.kind,
        )

    def _grid(
        self, images: Tensor, levels: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Anchors (h * w * A, 4) float32 of each level."""
        if self.kind == "ssd":
            height, width = images.shape[-2:]
            # torchvision's own forward makes a tensor of the size, which no graph of free sizes can hold.
            shares = self.anchors._grid_default_boxes(sizes, (height, width)).to(images.device)
            centre, half = shares[:, :2], shares[:, 2:] / 2
            corners = torch.cat([centre - half, centre + half], dim=1)
            limits = (width, height, width, height)
            whole = torch.stack([corners[:, i] * limit for i, limit in enumerate(limits)], dim=1)
            per_place = self.anchors.num_anchors_per_location()
            counts = [h * w * a for (h, w), a in zip(sizes, per_place, strict=True)]
            return list(whole.split(counts))
        self.anchors.set_cell_anchors(torch.float32, images.device)
        strides = [[FINEST * 2**i] * 2 for i in range(len(sizes))]
        return self.anchors.grid_anchors([list(size) for size in sizes], strides)


def split_levels(
    x: Tensor, sizes: Sequence[tuple[int, int]], anchors: Sequence[Tensor]
) -> list[Tensor]:
    """torchvision's (N, sum of h * w * A, C) -> (N, A * C, h, w), one a level, anchor-major; A may differ by level."""
    parts = x.split([level.shape[0] for level in anchors], dim=1)
    return [by_level(part, [size])[0] for part, size in zip(parts, sizes, strict=True)]


def torchvision_detector(
    num_classes: int, arch: str, weights: str | None, backbone_weights: str | None
) -> nn.Module:
    """The detector of a name, at random or with torchvision's weights.

    torchvision counts SSD's background as a class of its own, and so do its weights for COCO: 91 classes, of which
    number 0 is the background or never occurs.
    """
    kind = KINDS[arch]
    detector = get_model(
        arch,
        weights=weights,
        weights_backbone=backbone_weights,
        num_classes=None if weights is not None else num_classes + (kind == "ssd"),
    )
    if weights is not None:
        check_classes(detector, kind, num_classes, f"weights {weights} of {arch}")
    return TorchvisionDetector(detector, kind, num_classes)


def check_classes(detector: Any, kind: str, num_classes: int, who: str) -> None:
    """Raise UserError unless the weights are for so many classes."""
    head = detector.head.classification_head
    trained = head.num_columns if kind == "ssd" else head.num_classes
    trained -= kind == "ssd"
    if trained != num_classes:
        raise UserError(
            f"{who} are for {trained} classes, one for each category id of COCO, and {num_classes} are asked for; a "
            f"teacher is built with teacher.num_classes {trained}, and teacher.classes says which of them each of the "
            "student's is"
        )
