"""COCO's average precision of boxes, over all ranks; counted by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from densekd.errors import UserError
from densekd.ops.collectives import merge_ranks
from densekd.types import Boxes, Detections

# The twelve numbers of COCO's evaluation in its own order. AR at 1, 10 and 100 detections an image.
NAMES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)


class AveragePrecision:
    """Collects the boxes of images and compares them once at the end.

    The definitions are COCO's. AP is the mean over IoU thresholds 0.50, 0.55, ... 0.95 and over the classes that occur,
    of the precision at 101 recalls, from at most 100 detections an image and class. Small, medium and large are areas
    below 32², below 96² and above, in pixels of the image as its annotation file has it; the area is that of the
    object's mask where the file gives one. Objects marked `ignored` (COCO's crowds, VOC's difficult ones) enter as
    crowds: a detection that lies mostly inside of a crowd counts neither as right nor as wrong, and missing a crowd
    does not count. (VOC's own evaluation ignores a detection by its IoU with a difficult object, COCO's by the share of
    the detection that lies inside.)

    Args:
        classes: names in index order.
        category_ids: the annotation file's id of each class, for `results`; None numbers them from 1.
    """

    def __init__(self, classes: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        self.classes = list(classes)
        ids = range(1, len(self.classes) + 1) if category_ids is None else category_ids
        self.category_ids = [int(i) for i in ids]
        if len(self.category_ids) != len(self.classes):
            raise ValueError(
                f"category_ids has {len(self.category_ids)} values for {len(self.classes)} classes"
            )
        # image id -> ((x1, y1, x2, y2), label, ignored, area, height, width; boxes, scores, labels) in numpy
        self.images: dict[int, dict[str, Any]] = {}

    def update(self, found: Sequence[Detections], truth: Sequence[Boxes]) -> None:
        """Add images: entry i of both lists has the boxes of image i, in the pixels of that image.

        Raises:
            ValueError: the lists have different lengths, or an image id was added before.
        """
        if len(found) != len(truth):
            raise ValueError(f"detections of {len(found)} images for truth of {len(truth)}")
        for detections, target in zip(found, truth, strict=True):
            if target.image_id in self.images:
                raise ValueError(
                    f"image id {target.image_id} comes twice; each image needs an id of its own"
                )
            # To the CPU first: not every device (Apple's MPS) has float64.
            self.images[target.image_id] = {
                "size": target.size,
                "truth": target.boxes.cpu().double().numpy(),
                "truth_labels": target.labels.cpu().numpy(),
                "ignored": target.ignored.cpu().numpy(),
                "areas": target.areas.cpu().double().numpy(),
                "boxes": detections.boxes.cpu().double().numpy(),
                "labels": detections.labels.cpu().numpy(),
                "scores": detections.scores.cpu().double().numpy(),
            }

    def compute(self) -> dict[str, Any]:
        """Fractions by `NAMES` (None where nothing of that kind occurs), ``per_class`` AP, ``images``, ``objects``.

        It joins all ranks, so every rank must call it. The order of images and ranks does not matter.
        """
        images = self._all()
        objects = sum(int((~image["ignored"]).sum()) for image in images.values())
        scores: dict[str, Any] = dict.fromkeys(NAMES)
        scores["per_class"] = dict.fromkeys(self.classes)
        if objects:
            evaluation = evaluate(images, len(self.classes))
            numbers = [float(value) for value in evaluation.stats[: len(NAMES)]]
            scores |= {
                # COCO writes -1 where nothing of that kind occurs.
                name: None if value < 0 else value
                for name, value in zip(NAMES, numbers, strict=True)
            }
            # (IoU threshold, recall, class, area range, detections): all areas, 100 detections
            precision = evaluation.eval["precision"][:, :, :, 0, -1]
            for k, name in enumerate(self.classes):
                values = precision[:, :, k]
                values = values[values > -1]
                scores["per_class"][name] = float(values.mean()) if values.size else None
        return scores | {"images": len(images), "objects": objects}

    def results(self) -> list[dict[str, Any]]:
        """The content of COCO's ``results.json`` from all ranks, with the annotation file's own ids.

        The numbers are not rounded: a hundredth of a pixel moves a box over a threshold, and equal scores change their
        order.
        """
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": box,
                "score": score,
            }
            for image_id, image in self._all().items()
            for box, label, score in zip(
                xywh(image["boxes"]),
                image["labels"].tolist(),
                image["scores"].tolist(),
                strict=True,
            )
        ]

    def _all(self) -> dict[int, dict[str, Any]]:
        # Sorted, so that ties between scores of two images are broken the same on any number of ranks.
        return dict(sorted(merge_ranks(self.images).items()))


def xywh(boxes: np.ndarray) -> list[list[float]]:
    """(n, 4) corners -> COCO's left, top, width, height."""
    boxes = boxes.reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def evaluate(images: dict[int, dict[str, Any]], classes: int) -> Any:
    """The finished evaluation of faster-coco-eval; ids are positions, from 1."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise UserError(
            "average precision needs the package faster-coco-eval: pip install 'densekd[det]'"
        ) from error
    truth = COCO(
        {
            "info": {},
            "images": [
                {"id": i, "height": image["size"][0], "width": image["size"][1]}
                for i, image in enumerate(images.values(), 1)
            ],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
            "annotations": numbered(
                {
                    "image_id": i,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(ignored),
                }
                for i, image in enumerate(images.values(), 1)
                for box, label, area, ignored in zip(
                    xywh(image["truth"]),
                    image["truth_labels"].tolist(),
                    image["areas"].tolist(),
                    image["ignored"].tolist(),
                    strict=True,
                )
            ),
        }
    )
    found = COCO(
        {
            "info": {},
            "images": truth.dataset["images"],
            "categories": truth.dataset["categories"],
            "annotations": numbered(
                {
                    "image_id": i,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
                for i, image in enumerate(images.values(), 1)
                for box, label, score in zip(
                    xywh(image["boxes"]),
                    image["labels"].tolist(),
                    image["scores"].tolist(),
                    strict=True,
                )
            ),
        }
    )
    evaluation = COCOeval_faster(truth, found, "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def numbered(annotations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": i, **annotation} for i, annotation in enumerate(annotations, 1)]
