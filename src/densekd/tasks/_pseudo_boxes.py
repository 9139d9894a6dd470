"""A detector's answers as the truth of images that have none."""

from __future__ import annotations

from collections.abc import Sequence

from densekd.targets.boxes import LEAST_SIDE
from densekd.types import Boxes, Detections


def as_targets(found: Sequence[Detections], targets: Sequence[Boxes], score: float) -> list[Boxes]:
    """The boxes of scores from `score` on, cut to each image's own size, as targets.

    Args:
        found: of each image, in pixels of the batch's images.
        targets: what is known of the images; their sizes and numbers stay.
    """
    made = []
    for one, target in zip(found, targets, strict=True):
        height, width = target.size
        corners = one.boxes.float()
        boxes = corners.minimum(corners.new_tensor([width, height, width, height]))
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = (one.scores >= score) & (sides > LEAST_SIDE).all(1)
        boxes = boxes[kept]
        made.append(
            Boxes(
                boxes=boxes,
                labels=one.labels[kept].long(),
                ignored=kept.new_zeros(len(boxes)),
                areas=sides[kept].prod(1),
                image_id=target.image_id,
                size=target.size,
            )
        )
    return made
