"""Object detection: a dense one-stage detector's raw outputs against the boxes of each image.

One class with all that is asked of a task, so a long file; rules, guess and metric stand in files of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from typing_extensions import Doc

from densekd.errors import UserError
from densekd.metrics.average_precision import AveragePrecision
from densekd.ops.collectives import is_joined, means_over_ranks
from densekd.ops.resize import resize_image, resize_map
from densekd.ops.tiling import Views
from densekd.targets import BoxTarget
from densekd.tasks._frequent_boxes import frequent_boxes
from densekd.tasks._pseudo_boxes import as_targets
from densekd.tasks._set_predictions import as_detections
from densekd.tasks._torchvision_rules import (
    all_boxes,
    anchors_by_level,
    chosen_boxes,
    class_logits,
    compute_losses,
    decode_boxes,
    final_boxes,
    flatten,
    torchvision_rules,
)
from densekd.tasks.base import Column
from densekd.types import (
    Batch,
    Boxes,
    DecodedBoxes,
    DenseOutput,
    Detections,
    DetectorOutput,
    FinalBoxes,
    SetPrediction,
)

NMS = {"fcos": 0.6, "retinanet": 0.5, "ssd": 0.45}  # torchvision's own
# torchvision's names of the losses -> ours
LOSSES = {
    "classification": "task/classification",
    "bbox_regression": "task/box",
    "bbox_ctrness": "task/centerness",
}
NAMED_FROM = 200  # shorter side of a picture, in pixels, from which boxes carry names: on smaller ones names hide all


class Detection:
    """What the engine asks of a task, for detection.

    Assignment, losses, box coding and non-maximum suppression are torchvision's own, of its FCOS (focal loss, GIoU,
    centre-ness; centre sampling with radius 1.5), RetinaNet (focal loss, L1; IoU 0.5 and 0.4) and SSD (softmax with
    the hardest background, smooth L1; IoU 0.5): its classes are driven on our networks' outputs, so numbers agree with
    torchvision's on equal weights. Each loss is divided by the number of matched locations in the batch (FCOS, SSD;
    over several processes, in all their batches, as in FCOS's paper) or in the image (RetinaNet).

    Args:
        classes: names in index order; there is no background class.
        palette: an RGB colour a class, for pictures.
        category_ids: the annotation file's own id of each class, for ``results.json``.

    The signature says what the other arguments are.
    """

    name = "detection"
    target = BoxTarget
    metric_names = ("ap", "ap50", "ap75")
    smaller_is_better: frozenset[str] = frozenset()
    packages: Mapping[str, str] = {"faster_coco_eval": "det"}  # what scores need -> our extra
    quick_metric = "ap50"
    columns = (Column("ap", "AP", 100, 1), Column("ap50", "AP50", 100, 1))
    map_names: tuple[str, ...] = ()
    # Each class is a yes or no of its own: nothing sums to one.
    term_options: Mapping[str, Mapping[str, Any]] = {"pixel_wise": {"form": "sigmoid"}}
    holistic_activation = "sigmoid"

    def __init__(
        self,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        *,
        category_ids: Sequence[int] | None = None,
        score_threshold: Annotated[
            float,
            Interval(ge=0, le=1),
            Doc(
                "boxes with a lower score are dropped before NMS; low, since average precision wants the unsure ones "
                "too (torchvision's FCOS has 0.2 for use, its RetinaNet 0.05)"
            ),
        ] = 0.05,
        nms_threshold: Annotated[
            Annotated[float, Interval(ge=0, le=1)] | None,
            Doc(
                "IoU above which the weaker of two boxes of a class is dropped; null takes torchvision's (FCOS 0.6, "
                "RetinaNet 0.5, SSD 0.45)"
            ),
        ] = None,
        topk_candidates: Annotated[int, Ge(1), Doc("boxes of each level that enter NMS")] = 1000,
        detections_per_image: Annotated[
            int, Ge(1), Doc("boxes of an image that leave NMS; COCO counts 100")
        ] = 100,
        shown_above: Annotated[
            float, Interval(ge=0, le=1), Doc("score from which a box is drawn in pictures")
        ] = 0.4,
    ) -> None:
        self.classes = list(classes)
        self.num_classes = len(self.classes)
        self.palette = [tuple(c) for c in palette]
        self.category_ids = None if category_ids is None else list(category_ids)
        if not self.classes:
            raise ValueError("detection needs at least one class")
        for name, value, low in (
            ("score_threshold", score_threshold, 0.0),
            ("nms_threshold", 0.5 if nms_threshold is None else nms_threshold, 0.0),
            ("shown_above", shown_above, 0.0),
        ):
            if not low <= value <= 1:
                raise ValueError(f"{name} is {value}; expected a number from 0 to 1")
        for name, count in (
            ("topk_candidates", topk_candidates),
            ("detections_per_image", detections_per_image),
        ):
            if count < 1:
                raise ValueError(f"{name} is {count}; expected at least 1")
        self.shown_above = shown_above
        self.score_threshold = score_threshold
        self.detections_per_image = detections_per_image
        self.network_arguments = {"num_classes": self.num_classes}
        self.holistic_channels = self.num_classes
        self.rules = {
            kind: torchvision_rules(
                kind,
                self.num_classes,
                score_thresh=score_threshold,
                nms_thresh=NMS[kind] if nms_threshold is None else nms_threshold,
                topk_candidates=topk_candidates,
                detections_per_img=detections_per_image,
            )
            for kind in NMS
        }

    def check_output(self, output: DenseOutput, who: str) -> None:
        """Raise ValueError unless the prediction is a `DetectorOutput` of this many classes.

        A teacher may also give a `SetPrediction`: its features can be compared.
        """
        raw = output.prediction
        if isinstance(raw, SetPrediction):
            if who == "student":
                raise ValueError(
                    "the student predicts a set of boxes (DETR, RT-DETR, D-FINE), whose training by matching is not "
                    "part of densekd; as a teacher it works, by its features"
                )
            return
        if not isinstance(raw, DetectorOutput):
            raise ValueError(
                f"the {who} predicts a {type(raw).__name__}; detection expects a detector: one of fcos_timm, "
                "fcos_mobilenetv2_c128, fcos_resnet50, retinanet_timm, or a network that returns DetectorOutput"
            )
        if raw.kind not in self.rules:
            raise ValueError(
                f"the {who}'s output is of kind {raw.kind!r}; expected one of {', '.join(self.rules)}"
            )
        channels = raw.logits[0].shape[1]
        anchors = anchors_by_level(raw)[0]
        found = channels / anchors - (raw.kind == "ssd")
        if found != self.num_classes:
            raise ValueError(
                f"the {who} predicts {found:g} classes (logits {tuple(raw.logits[0].shape)}, {anchors} "
                f"anchors a location); this data has {self.num_classes}"
            )

    def loss(self, output: DenseOutput, batch: Batch) -> dict[str, Tensor]:
        """torchvision's terms; `ignored` objects are left out, and their places count as background.

        Images without labels count nothing; labelled images without objects teach background.
        """
        raw: DetectorOutput = output.prediction
        if raw.kind == "fcos":
            return self._fcos_loss(raw, batch)
        used = [i for i, labelled in enumerate(batch.labelled.tolist()) if labelled]
        flat = {k: torch.cat(v, dim=1) for k, v in flatten(raw).items()}
        if not used:
            # Zero, but with a graph, so that every parameter has a gradient under DDP.
            names = {"classification": "cls_logits"} | {k: k for k in flat if k != "cls_logits"}
            return _over_ranks({k: flat[name].sum() * 0 for k, name in names.items()}, 0)
        targets = []
        for i in used:
            target: Boxes = batch.targets[i]
            keep = ~target.ignored
            targets.append({"boxes": target.boxes[keep], "labels": target.labels[keep]})
        if len(used) < len(batch):
            flat = {k: v[used] for k, v in flat.items()}
        with torch.autocast(raw.anchors[0].device.type, enabled=False):
            terms, count = compute_losses(self.rules[raw.kind], raw, flat, targets)
        return _over_ranks(terms, count)

    def _fcos_loss(self, raw: DetectorOutput, batch: Batch) -> dict[str, Tensor]:
        """`loss` without a question to the device: which images and objects count is told by values, not by shapes."""
        flat = {k: torch.cat(v, dim=1) for k, v in flatten(raw).items()}
        targets = [
            # A box without an inside is matched by no place.
            {
                "boxes": target.boxes.masked_fill(target.ignored[:, None], 0.0),
                "labels": target.labels,
                "labelled": labelled,
            }
            for target, labelled in zip(batch.targets, batch.labelled, strict=True)
        ]
        with torch.autocast(raw.anchors[0].device.type, enabled=False):
            terms, count = compute_losses(self.rules["fcos"], raw, flat, targets)
        return _over_ranks(terms, count)

    def mask(self, batch: Batch, kind: str) -> Tensor | None:
        """(N, H, W) bool: boxes leave no pixel unlabelled, so ``"label"`` is ``"padding"``: all of the images."""
        return None if kind == "none" else batch.inside

    def map(self, output: DenseOutput, name: str = "prediction") -> list[Tensor]:
        """Class logits (N, K, h, w), one a level; the largest of the anchors at a location.

        So FCOS, RetinaNet and SSD can teach each other.

        Raises:
            ValueError: an unknown name, or a set of boxes, which has no place in the image.
        """
        if name != "prediction":
            raise ValueError(f"detection has no map {name!r}; expected 'prediction'")
        raw: DetectorOutput = output.prediction
        if isinstance(raw, SetPrediction):
            raise ValueError(
                "the teacher predicts a set of boxes (DETR, RT-DETR, D-FINE): its queries are no places of the image "
                "and cannot be compared with a dense head place by place. Compare features (pair_wise, fitnet and "
                "others with a module path for the teacher, such as model.encoder:last_hidden_state.*), or let its "
                "boxes teach images without labels (distill.pseudo_boxes)"
            )
        return class_logits(raw)

    def confidence(self, output: DenseOutput) -> list[Tensor]:
        """(N, 1, h, w) one a level: probability of the likeliest class."""
        return [x.amax(1, keepdim=True).sigmoid() for x in self.map(output)]

    def holistic_map(self, output: DenseOutput) -> Tensor:
        """(N, K, h, w) class logits at the finest level's size, the largest over levels."""
        finest, *others = self.map(output)
        for level in others:
            finest = torch.maximum(finest, resize_map(level, finest.shape[-2:]))
        return finest

    def predict(self, network: nn.Module, batch: Batch, views: Views) -> list[Detections]:
        """Boxes of each image in its own pixels. `network` is tapped (`Taps`).

        Each image is cut out of the batch's padding, resized to the size that `views` gives it and seen alone (or with
        those of its size), so its boxes do not depend on what else is in the batch.

        Raises:
            UserError: several scales, a flip or a window: boxes of several views are not joined.
        """
        check_views(views)
        images = batch.images
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, target in enumerate(batch.targets):
            by_size.setdefault(tuple(target.size), []).append(i)
        result: list[Detections | None] = [None] * len(batch)
        for (height, width), members in by_size.items():
            seen = images[members, :, :height, :width]
            size = views.sizes(height, width)[0]
            raw = network(resize_image(seen, size)).prediction
            for i, found in zip(members, self.decode(raw, size), strict=True):
                scale = found.boxes.new_tensor([width / size[1], height / size[0]] * 2)
                limit = found.boxes.new_tensor([width, height] * 2)
                result[i] = Detections(
                    (found.boxes * scale).minimum(limit), found.scores, found.labels
                )
        return [found for found in result if found is not None]

    def decode(
        self, raw: DetectorOutput | DecodedBoxes | FinalBoxes | SetPrediction, size: tuple[int, int]
    ) -> list[Detections]:
        """Raw outputs -> boxes in pixels of the network's input, clipped to its `size` (height, width); best first.

        What an exported file gives is decoded as far as NMS, or whole, already.
        """
        if isinstance(raw, FinalBoxes):
            found = [label >= 0 for label in raw.labels]
            images = zip(raw.boxes, raw.scores, raw.labels, found, strict=True)
            return [Detections(b[there], s[there], k[there]) for b, s, k, there in images]
        if isinstance(raw, SetPrediction):
            return as_detections(raw, size, self.detections_per_image, self.score_threshold)
        if isinstance(raw, DecodedBoxes):
            return chosen_boxes(self.rules[raw.kind], raw)
        with torch.autocast(raw.anchors[0].device.type, enabled=False):
            found = decode_boxes(self.rules[raw.kind], raw, size)
        return [Detections(f["boxes"], f["scores"], f["labels"]) for f in found]

    def pseudo_targets(
        self, raw: DetectorOutput | SetPrediction, batch: Batch, score: float
    ) -> list[Boxes]:
        """A teacher's boxes as the truth of a batch's images: what `decode` gives, of scores from `score` on.

        Raises:
            ValueError: the teacher predicts other classes.
        """
        classes = raw.logits.shape[-1] if isinstance(raw, SetPrediction) else self.num_classes
        if classes != self.num_classes:
            raise ValueError(
                f"the teacher predicts {classes} classes and this data has {self.num_classes}, so its boxes have no "
                "names here; teacher.classes says which of them each of the student's is"
            )
        size = batch.images.shape[-2], batch.images.shape[-1]
        return as_targets(self.decode(raw, size), batch.targets, score)

    def all_boxes(
        self, raw: DetectorOutput, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and levels of `DecodedBoxes`: the part of `decode` that a graph can hold."""
        return all_boxes(self.rules[raw.kind], raw, size)

    def final_boxes(
        self, raw: DetectorOutput, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of `FinalBoxes`: all of `decode`, for a graph."""
        return final_boxes(self.rules[raw.kind], raw, size)

    def metric(self, device: torch.device | str = "cpu") -> DetectionMetric:
        """A fresh count; it lives on the CPU whatever the `device`."""
        return DetectionMetric(self.classes, self.category_ids)

    def constant_guess(self, targets: Iterable[Any]) -> list[tuple[int, float, list[float]]]:
        """The boxes that hit most objects of the training images: see `frequent_boxes`."""
        return frequent_boxes(targets, len(self.classes))

    def guess(self, constant: Any, batch: Batch) -> list[Detections]:
        """`constant_guess` as the prediction of a batch."""
        ranked = sorted(constant, key=lambda entry: -entry[1])
        device = batch.images.device
        boxes = torch.tensor([box for _, _, box in ranked], device=device).reshape(-1, 4)
        scores = torch.tensor([score for _, score, _ in ranked], device=device)
        labels = torch.tensor([label for label, _, _ in ranked], dtype=torch.int64, device=device)
        return [
            Detections(
                boxes * boxes.new_tensor([target.size[1], target.size[0]] * 2), scores, labels
            )
            for target in batch.targets
        ]

    def example_targets(self, n: int, size: tuple[int, int], device: torch.device) -> list[Boxes]:
        """One object an image, over the middle half of it."""
        height, width = size
        box = torch.tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], device=device)
        return [
            Boxes(
                boxes=box.clone(),
                labels=torch.tensor([i % self.num_classes], device=device),
                ignored=torch.zeros(1, dtype=torch.bool, device=device),
                areas=torch.tensor([height * width / 4], device=device),
                image_id=i + 1,
                size=(height, width),
            )
            for i in range(n)
        ]

    def picture(self, image: np.ndarray, answer: Any) -> np.ndarray:
        """(H, W, 3) uint8: `image` with the boxes of a target or of `Detections` (those above `shown_above`) drawn.

        Ignored objects of a target are grey. On small pictures boxes have colours and no names.
        """
        sheet = Image.fromarray(np.ascontiguousarray(image))
        draw = ImageDraw.Draw(sheet)
        thick = max(1, round(min(sheet.size) / 150))
        font = ImageFont.load_default(max(9, round(min(sheet.size) / 25)))
        boxes, labels = to_numpy(answer.boxes), to_numpy(answer.labels)
        scores = to_numpy(answer.scores) if hasattr(answer, "scores") else None
        ignored = to_numpy(answer.ignored) if hasattr(answer, "ignored") else None
        # The best last, on top of the others.
        for i in reversed(range(len(boxes))):
            if scores is not None and scores[i] < self.shown_above:
                continue
            grey = ignored is not None and bool(ignored[i])
            colour = (160, 160, 160) if grey else self.palette[int(labels[i])]
            x0, y0, x1, y1 = (float(v) for v in boxes[i])
            draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=thick)
            text = self.classes[int(labels[i])]
            if scores is not None:
                text += f" {scores[i]:.2f}"
            if min(sheet.size) < NAMED_FROM:
                continue
            # On the name's own ground, inside of the image where the box begins at its top.
            left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
            y = max(0.0, y0 - (bottom - top) - 3)
            draw.rectangle((x0, y, x0 + right - left + 4, y + bottom - top + 3), fill=colour)
            ink = "black" if sum(colour) > 380 else "white"
            draw.text((x0 + 2 - left, y + 1 - top), text, fill=ink, font=font)
        return np.asarray(sheet)

    def summary(self, scores: Mapping[str, Any]) -> list[str]:
        """AP of each class, then by size, then AP, AP50 and AP75 in per cent."""
        width = max(map(len, self.classes))
        lines = [
            f"{name:<{width}}  {percent(value)}" for name, value in scores["per_class"].items()
        ]
        lines.append(
            f"AP small {percent(scores['ap_small'])}, medium {percent(scores['ap_medium'])}, "
            f"large {percent(scores['ap_large'])} ({scores['objects']} objects in {scores['images']} images)"
        )
        lines.append(
            f"AP {percent(scores['ap'])}, AP50 {percent(scores['ap50'])}, AP75 {percent(scores['ap75'])}"
        )
        return lines


class DetectionMetric:
    """COCO's numbers over all ranks; see `AveragePrecision`. Images without labels do not count."""

    def __init__(self, classes: Sequence[str], category_ids: Sequence[int] | None = None) -> None:
        self.precision = AveragePrecision(classes, category_ids)

    def update(self, prediction: Sequence[Detections], batch: Batch) -> None:
        used = [i for i, labelled in enumerate(batch.labelled.tolist()) if labelled]
        self.precision.update([prediction[i] for i in used], [batch.targets[i] for i in used])

    def compute(self) -> dict[str, Any]:
        return self.precision.compute()

    def results(self) -> list[dict[str, Any]]:
        """What COCO's ``results.json`` holds, as a list; joins all ranks."""
        return self.precision.results()


def check_views(views: Views) -> None:
    wrong = []
    if len(views.scales) != 1:
        wrong.append(f"`scales` is {list(views.scales)}: give one")
    if views.flip:
        wrong.append("`flip` is true: set it to false")
    if views.window is not None:
        wrong.append(f"`window` is {list(views.window)}: leave it out")
    if wrong:
        raise UserError("boxes of several views of one image are not joined; " + "; ".join(wrong))


def _over_ranks(terms: Mapping[str, Tensor], count: Tensor | int) -> dict[str, Tensor]:
    """torchvision's means, of `count` things each, under our names; within `over_ranks` the means of all ranks."""
    if is_joined():
        names = sorted(terms)  # a rank without labels has them in another order
        # A rank without a match has losses that torchvision divides by 1.
        divisor = max(1, count) if isinstance(count, int) else count.clamp(min=1)
        means = means_over_ranks([terms[name] * divisor for name in names], count)
        terms = dict(zip(names, means, strict=True))
    return {LOSSES[name]: value for name, value in terms.items()}


def to_numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
