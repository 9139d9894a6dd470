"""Semantic segmentation: class logits (N, K, h, w) against class maps (N, H, W)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from typing_extensions import Doc

from densekd.losses import CrossEntropy, OhemCrossEntropy
from densekd.metrics import ConfusionMatrix
from densekd.ops.argmax import argmax_map
from densekd.ops.tiling import Views, predict_classes
from densekd.targets import ClassMap
from densekd.tasks.base import Column
from densekd.types import Batch, DenseOutput


class Segmentation:
    """What the engine asks of a task, for segmentation.

    Args:
        classes: names in index order.
        palette: an RGB colour a class, for pictures.
        ignore_index: label that counts nowhere.

    The signature says what the other arguments are.
    """

    name = "segmentation"
    target = ClassMap
    metric_names = ("miou", "pixel_accuracy")
    smaller_is_better: frozenset[str] = frozenset()
    quick_metric = "pixel_accuracy"
    columns = (Column("miou", "mIoU (%)", 100, 2),)
    map_names: tuple[str, ...] = ()
    term_options: Mapping[str, Mapping[str, Any]] = {}  # the terms' own defaults are this task's
    holistic_activation = "softmax"

    def __init__(
        self,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        *,
        ignore_index: int = 255,
        loss: Annotated[
            Literal["cross_entropy", "ohem"], Doc("the supervised term; ohem: hard pixels only")
        ] = "cross_entropy",
        aux_weight: Annotated[
            float,
            Ge(0),
            Doc("weight of the auxiliary head's loss, where the network has one (PSPNet: 0.4)"),
        ] = 0.4,
        class_weights: Annotated[
            Sequence[float] | None, Doc("one value a class (cross_entropy only)")
        ] = None,
        label_smoothing: Annotated[float, Interval(ge=0, lt=1), Doc("cross_entropy only")] = 0.0,
        threshold: Annotated[
            float,
            Interval(gt=0, lt=1),
            Doc("ohem keeps the pixels whose true class has less probability"),
        ] = 0.7,
        min_kept: Annotated[
            float,
            Interval(ge=0, le=1),
            Doc("but ohem keeps at least this share of the valid pixels"),
        ] = 0.0625,
    ) -> None:
        if loss == "ohem":
            for name, given in (
                ("class_weights", class_weights),
                ("label_smoothing", label_smoothing),
            ):
                if given:
                    raise ValueError(
                        f"{name} is {given}; leave it out with the loss ohem, which would ignore it"
                    )
        self.classes = list(classes)
        self.num_classes = len(self.classes)
        self.palette = [tuple(c) for c in palette]
        self.ignore_index = ignore_index
        self.aux_weight = aux_weight
        self.network_arguments = {"num_classes": self.num_classes}
        self.holistic_channels = self.num_classes
        if class_weights is not None and len(class_weights) != self.num_classes:
            raise ValueError(
                f"class_weights has {len(class_weights)} values for {self.num_classes} classes"
            )
        self.term: nn.Module = (
            OhemCrossEntropy(threshold=threshold, min_kept=min_kept, ignore_index=ignore_index)
            if loss == "ohem"
            else CrossEntropy(
                ignore_index=ignore_index,
                class_weights=class_weights,
                label_smoothing=label_smoothing,
            )
        )

    def check_output(self, output: DenseOutput, who: str) -> None:
        """Raise ValueError unless the prediction is (N, num_classes, h, w)."""
        shape = getattr(output.prediction, "shape", None)
        if shape is None or len(shape) != 4 or shape[1] != self.num_classes:
            raise ValueError(
                f"the {who}'s prediction has shape {None if shape is None else tuple(shape)}; "
                f"segmentation with {self.num_classes} classes expects (N, {self.num_classes}, h, w)"
            )

    def loss(self, output: DenseOutput, batch: Batch) -> dict[str, Tensor]:
        """Weighted supervised terms; images without labels count nothing."""
        terms = {"task/ce": self._supervised(output.prediction, batch.targets)}
        if output.aux is not None:
            terms["task/aux"] = self.aux_weight * self._supervised(output.aux, batch.targets)
        return terms

    def _supervised(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.term.to(logits.device)(logits, target)

    def mask(self, batch: Batch, kind: str) -> Tensor | None:
        """(N, H, W) bool: which pixels distillation compares.

        ``"label"``: pixels with a label, and every pixel inside an image that has none at all; ``"padding"``: every
        pixel inside its image; ``"none"``: no mask.
        """
        if kind == "none":
            return None
        if kind == "padding":
            return batch.inside
        known = (batch.targets != self.ignore_index) | ~batch.labelled[:, None, None]
        return known & batch.inside

    def map(self, output: DenseOutput, name: str = "prediction") -> Tensor:
        """The logits (N, K, h, w)."""
        return output.prediction

    def confidence(self, output: DenseOutput) -> Tensor:
        """(N, 1, h, w): the probability of the likeliest class."""
        return output.prediction.float().softmax(1).amax(1, keepdim=True)

    def holistic_map(self, output: DenseOutput) -> Tensor:
        """The logits (N, K, h, w)."""
        return output.prediction

    def predict(self, network: nn.Module, batch: Batch, views: Views) -> Tensor:
        """(N, H, W) class map at the size of the images; `network` is tapped."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        return predict_classes(lambda x: network(x).prediction, batch.images, size, views)

    def decode(self, scores: Tensor) -> Tensor:
        """(N, K, H, W) logits or probabilities -> (N, H, W) uint8 class map (int16 above 255 classes)."""
        return argmax_map(scores, scores.shape[-2:])

    def metric(self, device: torch.device | str = "cpu") -> SegmentationMetric:
        """Counts of its own; `device` is that of the predictions (see `ConfusionMatrix`)."""
        return SegmentationMetric(self.classes, self.ignore_index, device)

    def constant_guess(self, targets: Iterable[Any]) -> int:
        """The most frequent class of the training labels."""
        counts = np.zeros(self.num_classes, np.int64)
        for target, _ in targets:
            known = np.asarray(target)[np.asarray(target) != self.ignore_index]
            counts += np.bincount(known.ravel(), minlength=self.num_classes)
        return int(counts.argmax())

    def guess(self, constant: int, batch: Batch) -> Tensor:
        """(N, H, W): that class everywhere."""
        return torch.full_like(batch.targets, constant).to(torch.int16)

    def example_targets(self, n: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """(N, H, W) of the first class."""
        return torch.zeros(n, *size, dtype=torch.int64, device=device)

    def picture(self, image: np.ndarray, answer: Any) -> np.ndarray:
        """(H, W) class map -> (H, W, 3) uint8 RGB in the classes' colours; ignored pixels black."""
        return self.colour(np.asarray(answer))

    def colour(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) class map -> (H, W, 3) uint8 RGB; ignored pixels black."""
        labels = np.asarray(labels)
        table = np.array(self.palette[: self.num_classes], np.uint8)
        known = (labels != self.ignore_index) & (labels >= 0) & (labels < len(table))
        return table[np.where(known, labels, 0)] * known[..., None].astype(np.uint8)

    def summary(self, scores: Mapping[str, Any]) -> list[str]:
        """IoU by class, pixel accuracy, mIoU."""
        values = {
            **scores["iou"],
            "pixel accuracy": scores["pixel_accuracy"],
            "mIoU": scores["miou"],
        }
        return [f"{name:>16}  {'-' if v is None else f'{v:.4f}'}" for name, v in values.items()]


class SegmentationMetric:
    """mIoU, pixel accuracy and per-class IoU as fractions, over all ranks."""

    def __init__(
        self, classes: Sequence[str], ignore_index: int, device: torch.device | str = "cpu"
    ) -> None:
        self.classes = list(classes)
        self.confusion = ConfusionMatrix(len(self.classes), ignore_index, device=device)

    def update(self, prediction: Tensor, batch: Batch) -> None:
        self.confusion.update(prediction, batch.targets)

    def compute(self) -> dict[str, Any]:
        """``{"miou", "pixel_accuracy", "iou": {class: IoU or None}, "pixels"}``; None: class does not occur."""
        confusion = self.confusion.reduce()
        iou = confusion.iou().tolist()
        return {
            "miou": confusion.miou(),
            "pixel_accuracy": confusion.pixel_accuracy(),
            "iou": {
                name: None if math.isnan(value) else value
                for name, value in zip(self.classes, iou, strict=True)
            },
            "pixels": int(confusion.counts.sum()),
        }
