"""torchvision's rules of dense detectors (assignment, losses, box coding, NMS), driven on our networks' outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import boxes as box_ops

from densekd.types import DecodedBoxes, Detections, DetectorOutput


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


def all_boxes(
    rules: Any, raw: DetectorOutput, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw outputs -> the boxes of all places, before any threshold: torchvision's post-processing up to there.

    Args:
        rules: torchvision's detector of this kind.
        size: (height, width) of the network's input.

    Returns:
        boxes, scores and levels of `DecodedBoxes`.
    """
    flat = {name: torch.cat(levels, dim=1) for name, levels in flatten(raw).items()}
    anchors, codes = torch.cat(raw.anchors), flat["bbox_regression"]
    coder = rules.box_coder
    if raw.kind == "fcos":
        boxes = coder.decode(codes, anchors)
        scores = (flat["cls_logits"].sigmoid() * flat["bbox_ctrness"].sigmoid()).sqrt()
    else:
        boxes = coder.decode_single(codes.flatten(0, 1), anchors.repeat(len(codes), 1))
        boxes = boxes.view_as(codes)
        scores = flat["cls_logits"].sigmoid()
    height, width = size
    limits = ((0, width), (1, height), (2, width), (3, height))
    boxes = torch.stack([boxes[..., i].clamp(0, limit) for i, limit in limits], dim=-1)
    levels = torch.cat([torch.full_like(a[:, 0], i).long() for i, a in enumerate(raw.anchors)])
    return boxes, scores, levels


def chosen_boxes(rules: Any, raw: DecodedBoxes) -> list[Detections]:
    """The rest of torchvision's post-processing: threshold, the best of each level, NMS."""
    found = []
    classes, levels = raw.scores.shape[-1], raw.levels
    for image_boxes, image_scores in zip(raw.boxes, raw.scores, strict=True):
        picked = []
        for level in levels.unique().tolist():
            places = torch.where(levels == level)[0]
            flat = image_scores[places].flatten()
            kept = torch.where(flat > rules.score_thresh)[0]
            best = kept[flat[kept].topk(min(len(kept), rules.topk_candidates)).indices]
            place = places[torch.div(best, classes, rounding_mode="floor")]
            picked.append((image_boxes[place], flat[best], best % classes))
        b, s, labels = (torch.cat(parts) for parts in zip(*picked, strict=True))
        keep = box_ops.batched_nms(b, s, labels, rules.nms_thresh)[: rules.detections_per_img]
        found.append(Detections(b[keep], s[keep], labels[keep]))
    return found
