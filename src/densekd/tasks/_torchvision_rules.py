"""torchvision's rules of dense detectors (assignment, losses, box coding, NMS), driven on our networks' outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet

from densekd.types import DetectorOutput


class NoNetwork(nn.Module):
    """Stands where torchvision's detectors want a network, of whose rules alone we make use."""

    out_channels = 32


def torchvision_rules(kind: str, num_classes: int, **settings: Any) -> Any:
    """torchvision's detector without a network: its assignment, losses and post-processing.

    Built on the meta device: the heads it insists on cost nothing and draw no random numbers; their ``compute_loss``
    reads no parameter.
    """
    with torch.device("meta"):
        build = FCOS if kind == "fcos" else RetinaNet
        return build(NoNetwork(), num_classes, **settings)


def flatten(raw: DetectorOutput) -> dict[str, list[Tensor]]:
    """Levels (N, A * C, h, w) -> torchvision's (N, h * w * A, C) under its names, float32."""
    a = anchors_a_location(raw)
    given = {"cls_logits": raw.logits, "bbox_regression": raw.boxes}
    if raw.centerness is not None:
        given["bbox_ctrness"] = raw.centerness
    return {
        name: [x.unflatten(1, (a, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3).float() for x in levels]
        for name, levels in given.items()
    }


def anchors_a_location(raw: DetectorOutput) -> int:
    height, width = raw.logits[0].shape[-2:]
    return max(1, len(raw.anchors[0]) // (height * width))
