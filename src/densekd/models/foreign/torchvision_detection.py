"""torchvision's own one-stage detectors: ``{name: torchvision, options: {arch: fcos_resnet50_fpn}}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from densekd.errors import UserError
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
        logits, boxes, centerness = self._raw(levels)
        return DetectorOutput(
            logits=logits,
            boxes=boxes,
            centerness=centerness,
            anchors=self._grid(images, sizes),
            kind=self.kind,
        )

    def _raw(
        self, levels: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        """What the head's last convolutions give, (N, A * C, h, w), anchor-major: logits, boxes, centerness.

        The head's own forward joins all levels into one row of places, which a graph of free sizes can hardly take
        apart again.
        """
        classes, places = self.head.classification_head, self.head.regression_head
        if self.kind == "ssd":
            logits = [head(x) for head, x in zip(classes.module_list, levels, strict=True)]
            boxes = [head(x) for head, x in zip(places.module_list, levels, strict=True)]
            return logits, boxes, None
        logits = [classes.cls_logits(classes.conv(x)) for x in levels]
        towers = [places.conv(x) for x in levels]
        boxes = [places.bbox_reg(tower) for tower in towers]
        if self.kind != "fcos":
            return logits, boxes, None
        return logits, [x.relu() for x in boxes], [places.bbox_ctrness(tower) for tower in towers]

    def _grid(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Anchors (h * w * A, 4) float32 of each level."""
        if self.kind == "ssd":
            size = (images.shape[-2], images.shape[-1])
            return [
                default_boxes(self.anchors, k, level, size, images.device)
                for k, level in enumerate(sizes)
            ]
        self.anchors.set_cell_anchors(torch.float32, images.device)
        strides = [[FINEST * 2**i] * 2 for i in range(len(sizes))]
        return self.anchors.grid_anchors([list(size) for size in sizes], strides)


def default_boxes(
    generator: Any, k: int, level: tuple[int, int], size: tuple[int, int], device: torch.device
) -> Tensor:
    """SSD's anchors (h * w * A, 4) XYXY of level `k`, in pixels of an image of this (height, width).

    torchvision's own forward makes a tensor of the size, which no graph of free sizes can hold.
    """
    (rows, columns), (height, width) = level, size
    shares = generator._wh_pairs[k].to(device)
    shares = shares.clamp(0, 1) if generator.clip else shares
    per_row, per_column = columns, rows
    if generator.steps is not None:
        per_row, per_column = width / generator.steps[k], height / generator.steps[k]
    x = ((torch.arange(columns, device=device) + 0.5) / per_row).view(1, -1, 1)
    y = ((torch.arange(rows, device=device) + 0.5) / per_column).view(-1, 1, 1)
    half_width, half_height = (shares / 2).unbind(1)
    sides = (
        (x - half_width) * width,
        (y - half_height) * height,
        (x + half_width) * width,
        (y + half_height) * height,
    )
    shape = (rows, columns, len(shares))
    return torch.stack([side.expand(shape) for side in sides], dim=-1).flatten(0, 2)


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
