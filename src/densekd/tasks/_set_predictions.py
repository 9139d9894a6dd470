"""Boxes of a detector of the DETR family: the queries with the best scores; there is no suppression."""

from __future__ import annotations

import torch
from torchvision.ops import box_convert

from densekd.types import Detections, SetPrediction


def as_detections(
    raw: SetPrediction, size: tuple[int, int], count: int, least: float
) -> list[Detections]:
    """At most `count` boxes an image, in pixels of `size` (height, width), of scores above `least`; best first.

    Every pair of a query and a class is a candidate with the sigmoid of its logit, as in RT-DETR and D-FINE.
    """
    scores, places = raw.logits.float().sigmoid().flatten(1).sort(1, descending=True)
    classes = raw.logits.shape[-1]
    height, width = size
    corners = box_convert(raw.boxes.float(), "cxcywh", "xyxy").clamp(0, 1)
    corners = corners * corners.new_tensor([width, height] * 2)
    found = []
    for image, place in enumerate(places[:, :count]):
        kept = place[scores[image, : len(place)] > least]
        query = torch.div(kept, classes, rounding_mode="floor")
        found.append(Detections(corners[image, query], scores[image, : len(kept)], kept % classes))
    return found
