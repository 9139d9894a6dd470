"""The losses of torchvision's FCOS in shapes that do not depend on how many places are matched.

torchvision takes the matched places out, whose number the host has to wait for. Values are equal, up to the order of
sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

# torchvision's: keeps quotients of empty boxes finite.
_EPS = 1e-7


def fcos_losses(
    box_coder: Any,
    targets: Sequence[dict[str, Tensor]],
    outputs: dict[str, Tensor],
    anchors: Tensor,
    matched: Sequence[Tensor],
) -> dict[str, Tensor]:
    """torchvision's three losses under its names, and how many places are ``"matched"``.

    Args:
        box_coder: torchvision's ``BoxLinearCoder``.
        targets: of each image ``boxes`` (n, 4), ``labels`` (n,), and ``labelled``, a bool scalar: an image without
            labels counts nothing, whatever else is there.
        outputs: ``cls_logits`` (N, P, K), ``bbox_regression`` (N, P, 4) and ``bbox_ctrness`` (N, P, 1).
        anchors: (P, 4).
        matched: of each image, for each place the box that it stands for, or -1; (P,) each.
    """
    logits = outputs["cls_logits"]
    labels, boxes = zip(
        *(_at_places(target, places) for target, places in zip(targets, matched, strict=True)),
        strict=True,
    )
    truth, true_boxes = torch.stack(labels), torch.stack(boxes)  # (N, P) and (N, P, 4)
    labelled = torch.stack([target["labelled"] for target in targets])[:, None]  # (N, 1)
    found = (truth >= 0) & labelled
    count = found.sum()

    # What does not count may hold anything, and must not reach the gradient.
    logits = logits.where(labelled[..., None], 0.0)
    one_hot = truth[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    focal = sigmoid_focal_loss(logits, one_hot.to(logits.dtype))
    classification = focal.masked_fill(~labelled[..., None], 0.0).sum()

    decoded = box_coder.decode(outputs["bbox_regression"], anchors)
    decoded = torch.where(found[..., None], decoded, true_boxes)
    box = _giou_loss(decoded, true_boxes).masked_fill(~found, 0.0).sum()

    sides = box_coder.encode(anchors, true_boxes)
    across, down = sides[..., 0::2], sides[..., 1::2]
    centred = (across.amin(-1) / across.amax(-1)) * (down.amin(-1) / down.amax(-1))
    said = outputs["bbox_ctrness"].squeeze(2).where(found, 0.0)
    centerness = functional.binary_cross_entropy_with_logits(
        said, centred.sqrt().where(found, 0.0), reduction="none"
    )
    divisor = count.clamp(min=1)
    return {
        "classification": classification / divisor,
        "bbox_regression": box / divisor,
        "bbox_ctrness": centerness.masked_fill(~found, 0.0).sum() / divisor,
        "matched": count,
    }


def _at_places(target: dict[str, Tensor], matched: Tensor) -> tuple[Tensor, Tensor]:
    """Of each place the class, -1 for the background, (P,), and the box, (P, 4), that it stands for."""
    labels, boxes = target["labels"], target["boxes"]
    if not len(labels):
        return labels.new_full((len(matched),), -1), boxes.new_zeros(len(matched), 4)
    place = matched.clamp(min=0)
    return labels[place].masked_fill(matched < 0, -1), boxes[place]


def _giou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """torchvision's ``generalized_box_iou_loss`` of (..., 4) XYXY, which takes out the boxes that overlap."""
    low, high = (
        torch.maximum(boxes[..., :2], others[..., :2]),
        torch.minimum(boxes[..., 2:], others[..., 2:]),
    )
    width, height = (high - low).unbind(-1)
    overlap = (width * height).where((high > low).all(-1), 0.0)
    union = _area(boxes) + _area(others) - overlap
    around = (
        torch.minimum(boxes[..., :2], others[..., :2]),
        torch.maximum(boxes[..., 2:], others[..., 2:]),
    )
    hull = _area(torch.cat(around, dim=-1))
    return 1 - (overlap / (union + _EPS) - (hull - union) / (hull + _EPS))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
