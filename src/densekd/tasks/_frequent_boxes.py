"""The constant guess of detection: boxes that are right for many images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

GUESSES = 5  # the most boxes that are taken for a class
CANDIDATES = 400  # boxes of a class among which they are chosen


def frequent_boxes(
    targets: Iterable[Any], num_classes: int
) -> list[tuple[int, float, list[float]]]:
    """The boxes that hit most objects of the training images, whatever the image.

    For each class, up to `GUESSES` times, the one of its boxes (relative to the image; of up to `CANDIDATES`) that
    has an IoU of 0.5 with the most objects not hit yet. Its score is that number over the number of images: how
    often it is right.

    Args:
        targets: pairs (target with ``boxes``, ``labels``, ``ignored``; (height, width)).

    Returns:
        (class, score, [x1, y1, x2, y2] from 0 to 1).
    """
    boxes: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    images = 0
    for target, (height, width) in targets:
        images += 1
        keep = ~np.asarray(target.ignored)
        sides = np.array([width, height, width, height], np.float32)
        relative = np.asarray(target.boxes, np.float32)[keep] / sides
        for box, label in zip(relative, np.asarray(target.labels)[keep], strict=True):
            boxes[int(label)].append(box)
    constant = []
    for label, of_class in enumerate(boxes):
        step = max(1, len(of_class) // (10 * CANDIDATES))
        left = torch.from_numpy(np.array(of_class[::step], np.float32).reshape(-1, 4))
        share = len(of_class) / max(1, len(left) * images)
        candidates = left[:: max(1, len(left) // CANDIDATES)]
        for _ in range(GUESSES):
            if not len(left):
                break
            hits = box_iou(candidates, left) >= 0.5
            best = int(hits.sum(1).argmax())
            score = min(1.0, float(hits[best].sum()) * share)
            if score > 0:
                constant.append((label, score, candidates[best].tolist()))
            left = left[~hits[best]]
    return constant
