"""torchvision's rules of dense detectors (assignment, losses, box coding, NMS), driven on our networks' outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import batched_nms, box_iou

from densekd.losses._checks import full_precision
from densekd.tasks._fcos_losses import fcos_losses
from densekd.types import DecodedBoxes, Detections, DetectorOutput


class NoNetwork(nn.Module):
    """Stands where torchvision's detectors want a network, of whose rules alone we make use."""

    out_channels = 32


class WaitlessHead(FCOSHead):
    """torchvision's, with its losses as `fcos_losses` takes them."""

    def compute_loss(  # pyrefly: ignore[bad-override]
        self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: list[Tensor]
    ) -> dict[str, Any]:
        return fcos_losses(self.box_coder, targets, head_outputs, anchors[0], matched_idxs)


def _matched(indices: list[Tensor]) -> Tensor:
    return torch.stack([(of_image >= 0).sum() for of_image in indices]).sum()


def torchvision_rules(kind: str, num_classes: int, **settings: Any) -> Any:
    """torchvision's detector without a network: its assignment, losses and post-processing.

    Built on the meta device: the heads it insists on cost nothing and draw no random numbers; their ``compute_loss``
    reads no parameter.
    """
    with torch.device("meta"):
        if kind == "ssd":
            # Anchors come with the outputs; the size is that of a transform that is not used.
            head: dict[str, Any] = {
                "anchor_generator": None,
                "size": (300, 300),
                "head": nn.Identity(),
            }
            return SSD(NoNetwork(), num_classes=num_classes + 1, **head, **settings)
        if kind == "fcos":
            head_of_losses = WaitlessHead(NoNetwork.out_channels, 1, num_classes)
            return FCOS(NoNetwork(), num_classes, head=head_of_losses, **settings)
        return RetinaNet(NoNetwork(), num_classes, **settings)


def compute_losses(
    rules: Any, raw: DetectorOutput, flat: dict[str, Tensor], targets: list[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], Tensor | int]:
    """torchvision's losses under its names, and of how many things each is the mean.

    These are the matched locations of the batch (FCOS, SSD), at least 1, or its images (RetinaNet, whose losses are
    means over an image's own).

    Args:
        flat: `flatten`'s outputs with the levels joined, of the images that have targets.
        targets: ``boxes`` and ``labels`` of each of those images; labels from 0. FCOS: of all images, with
            ``labelled``, see `fcos_losses`.
    """
    anchors = [torch.cat(raw.anchors)] * len(targets)
    if raw.kind == "fcos":
        losses = rules.compute_loss(targets, flat, anchors, [len(level) for level in raw.anchors])
        return losses, losses.pop("matched")
    if raw.kind == "ssd":
        targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        matched = [match(rules, target["boxes"], anchors[0]) for target in targets]
        return rules.compute_loss(targets, flat, anchors, matched), _matched(matched)
    return rules.compute_loss(targets, flat, anchors), len(targets)


def match(rules: Any, boxes: Tensor, anchors: Tensor) -> Tensor:
    """For each of SSD's anchors the box that it stands for, or -1."""
    if not len(boxes):
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    return rules.proposal_matcher(box_iou(boxes, anchors))


def decode_boxes(rules: Any, raw: DetectorOutput, size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """``boxes``, ``scores`` and ``labels`` (from 0) of each image after NMS, best first, clipped to `size`."""
    n = len(raw.logits[0])
    levels = flatten(raw)
    if raw.kind != "ssd":
        return rules.postprocess_detections(levels, [raw.anchors] * n, [size] * n)
    flat = {name: torch.cat(maps, dim=1) for name, maps in levels.items()}
    found = rules.postprocess_detections(flat, [torch.cat(raw.anchors)] * n, [size] * n)
    return [{**image, "labels": image["labels"] - 1} for image in found]


def class_logits(raw: DetectorOutput) -> list[Tensor]:
    """Logits of a yes or no (N, K, h, w), one a level: the largest of the anchors at a location.

    SSD's softmax with the background becomes one of these for each class: log p - log (1 - p).
    """
    counts = anchors_by_level(raw)
    if raw.kind != "ssd" and set(counts) == {1}:
        return raw.logits
    result = []
    for logits, a in zip(raw.logits, counts, strict=True):
        by_class = logits.unflatten(1, (a, -1))
        if raw.kind == "ssd":
            by_class = odds(by_class.float())[:, :, 1:].to(logits.dtype)
        result.append(by_class.amax(1))
    return result


def odds(logits: Tensor) -> Tensor:
    """(N, A, C, h, w) of a softmax over C -> log p - log (1 - p) of each, finite where p is nearly 1."""
    others = []
    for c in range(logits.shape[2]):
        rest = [i for i in range(logits.shape[2]) if i != c]
        others.append(logits[:, :, rest].logsumexp(2))
    return logits - torch.stack(others, 2)


def flatten(raw: DetectorOutput) -> dict[str, list[Tensor]]:
    """Levels (N, A * C, h, w) -> torchvision's (N, h * w * A, C) under its names, float32 (float64 as it is)."""
    given = {"cls_logits": raw.logits, "bbox_regression": raw.boxes}
    if raw.centerness is not None:
        given["bbox_ctrness"] = raw.centerness
    return {
        name: [
            full_precision(x.unflatten(1, (a, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3))
            for x, a in zip(levels, anchors_by_level(raw), strict=True)
        ]
        for name, levels in given.items()
    }


def anchors_by_level(raw: DetectorOutput) -> list[int]:
    """A of each level; SSD's differ."""
    return [
        max(1, anchors.shape[0] // (x.shape[-2] * x.shape[-1]))
        for x, anchors in zip(raw.logits, raw.anchors, strict=True)
    ]


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
        boxes = coder.decode_single(codes.flatten(0, 1), anchors.repeat(codes.shape[0], 1))
        boxes = boxes.view_as(codes)
        logits = flat["cls_logits"]
        scores = logits.softmax(-1)[..., 1:] if raw.kind == "ssd" else logits.sigmoid()
    height, width = size
    limits = ((0, width), (1, height), (2, width), (3, height))
    boxes = torch.stack([boxes[..., i].clamp(0, limit) for i, limit in limits], dim=-1)
    levels = torch.cat([torch.full_like(a[:, 0], i).long() for i, a in enumerate(raw.anchors)])
    return boxes, scores, levels


def chosen_boxes(rules: Any, raw: DecodedBoxes) -> list[Detections]:
    """The rest of torchvision's post-processing: threshold, the best of each level (SSD: of each class), NMS."""
    found = []
    classes, levels = raw.scores.shape[-1], raw.levels
    for image_boxes, image_scores in zip(raw.boxes, raw.scores, strict=True):
        picked = []
        for label in range(classes if raw.kind == "ssd" else 0):
            kept = torch.where(image_scores[:, label] > rules.score_thresh)[0]
            best, order = image_scores[kept, label].topk(min(len(kept), rules.topk_candidates))
            picked.append((image_boxes[kept[order]], best, torch.full_like(order, label)))
        for level in [] if raw.kind == "ssd" else levels.unique().tolist():
            places = torch.where(levels == level)[0]
            flat = image_scores[places].flatten()
            kept = torch.where(flat > rules.score_thresh)[0]
            best = kept[flat[kept].topk(min(len(kept), rules.topk_candidates)).indices]
            place = places[torch.div(best, classes, rounding_mode="floor")]
            picked.append((image_boxes[place], flat[best], best % classes))
        b, s, labels = (torch.cat(parts) for parts in zip(*picked, strict=True))
        keep = batched_nms(b, s, labels, rules.nms_thresh)[: rules.detections_per_img]
        found.append(Detections(b[keep], s[keep], labels[keep]))
    return found


def final_boxes(
    rules: Any, raw: DetectorOutput, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """All of torchvision's post-processing, for whole batches and in shapes that a traced graph can have.

    Returns:
        boxes, scores and labels of `FinalBoxes`.
    """
    boxes, scores, _ = all_boxes(rules, raw, size)
    best, place, label = candidates(rules, raw, scores)
    box = boxes.gather(1, place[..., None].expand(-1, -1, 4))
    kept = torch.ops.densekd.kept(
        box,
        best,
        label,
        scores.shape[-1],
        rules.score_thresh,
        rules.nms_thresh,
        rules.detections_per_img,
    )
    # Lower than any score, and more of them than are asked for.
    ranked = functional.pad(
        torch.where(kept, best, -1.0), (0, rules.detections_per_img), value=-1.0
    )
    score, order = ranked.topk(rules.detections_per_img)
    found = score > rules.score_thresh
    order = torch.where(found, order, 0)
    box = box.gather(1, order[..., None].expand(-1, -1, 4)) * found[..., None]
    label = torch.where(found, label.gather(1, order), -1)
    return box, score * found, label


def candidates(rules: Any, raw: DetectorOutput, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best of each level, or of SSD's classes: score, place and label of each, (N, C).

    Where there are fewer, what is missing has the score -1.
    """
    top, classes = rules.topk_candidates, scores.shape[-1]
    if raw.kind == "ssd":
        padded = functional.pad(scores.transpose(1, 2), (0, top), value=-1.0)
        best, place = padded.topk(top)  # (N, K, top)
        label = torch.arange(classes, device=scores.device).view(1, -1, 1).expand_as(place)
        place = torch.where(best < 0, 0, place)
        return best.flatten(1), place.flatten(1), label.flatten(1)
    parts, before = [], 0
    for level in scores.split([anchors.shape[0] for anchors in raw.anchors], dim=1):
        best, at = functional.pad(level.flatten(1), (0, top), value=-1.0).topk(top)
        place = torch.div(at, classes, rounding_mode="floor") + before
        parts.append((best, torch.where(best < 0, 0, place), at % classes))
        before = before + level.shape[1]
    best, place, label = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
    return best, place, label


@torch.library.custom_op("densekd::kept", mutates_args=())
def kept_boxes(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    classes: int,
    score_threshold: float,
    nms_threshold: float,
    count: int,
) -> Tensor:
    """(N, C) bool: the boxes that stay after NMS of each class by itself; ONNX's NonMaxSuppression.

    Args:
        boxes: (N, C, 4) XYXY.
        scores: (N, C); those up to `score_threshold` do not stay.
        labels: (N, C), from 0 to `classes`.
        count: at most so many of an image are needed.
    """
    kept = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    for image in range(len(boxes)):
        above = torch.where(scores[image] > score_threshold)[0]
        stay = batched_nms(
            boxes[image, above], scores[image, above], labels[image, above], nms_threshold
        )
        kept[image, above[stay[:count]]] = True
    return kept


@kept_boxes.register_fake
def _(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    classes: int,
    score_threshold: float,
    nms_threshold: float,
    count: int,
) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
