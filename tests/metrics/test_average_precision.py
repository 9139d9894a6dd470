"""Average precision by hand values, and against pycocotools."""

from __future__ import annotations

import builtins
import contextlib
import io
from dataclasses import replace

import pytest
import torch

from densekd.errors import UserError
from densekd.metrics.average_precision import NAMES, AveragePrecision
from densekd.types import Boxes, Detections

pytest.importorskip("faster_coco_eval")
CLASSES = ["cat", "dog", "cow"]
A, B, C = [0, 0, 50, 50], [60, 0, 110, 50], [0, 60, 50, 110]  # apart from each other


def truth(boxes, labels, ignored=None, image_id=1, size=(200, 200)) -> Boxes:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Boxes(
        boxes=boxes,
        labels=torch.tensor(labels, dtype=torch.int64),
        ignored=torch.tensor(ignored or [False] * len(boxes), dtype=torch.bool),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        image_id=image_id,
        size=size,
    )


def found(boxes, scores, labels) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def score(detections: Detections, target: Boxes) -> dict:
    metric = AveragePrecision(CLASSES)
    metric.update([detections], [target])
    return metric.compute()


def test_all_found():
    scores = score(found([A, B], [0.9, 0.8], [0, 1]), truth([A, B], [0, 1]))
    assert scores["ap"] == scores["ap50"] == scores["ap75"] == scores["ar100"] == 1
    assert scores["per_class"] == {"cat": 1, "dog": 1, "cow": None}
    # 50 x 50 pixels: medium; nothing small or large occurs
    assert (scores["ap_small"], scores["ap_medium"], scores["ap_large"]) == (None, 1, None)
    assert (scores["images"], scores["objects"]) == (1, 2)


# Precision is read at recalls 0, 0.01, ... 1: 51 of 101 lie at or below 0.5.
@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([A], [0.9], 51 / 101),  # one of two found
        ([A, B], [0.9, 0.8], 1.0),
        ([C, A, B], [0.9, 0.8, 0.7], 2 / 3),  # a false one above: precision 1/2, then 2/3
        ([A, C, B], [0.9, 0.8, 0.7], (51 + 50 * 2 / 3) / 101),  # a false one between them
        ([A, A, B], [0.9, 0.8, 0.7], (51 + 50 * 2 / 3) / 101),  # the second box on A is false
        ([A, B, C], [0.9, 0.8, 0.7], 1.0),  # a false one below both costs nothing
        ([], [], 0.0),
    ],
)
def test_by_hand(boxes, scores, expected):
    result = score(found(boxes, scores, [0] * len(boxes)), truth([A, B], [0, 0]))
    assert result["ap50"] == pytest.approx(expected)
    assert result["ap"] == pytest.approx(expected)
    assert result["per_class"]["cat"] == pytest.approx(expected)


def test_ious_decide():
    """A box of IoU 0.8 is right at 7 of the 10 thresholds 0.50, 0.55, ... 0.95."""
    result = score(found([[0, 0, 40, 50]], [0.9], [0]), truth([A], [0]))
    assert result["ap50"] == result["ap75"] == 1
    assert result["ap"] == pytest.approx(0.7)


def test_crowds_count_neither_way():
    target = truth([A, [100, 100, 200, 200]], [0, 0], ignored=[False, True])
    in_crowd = found([[110, 110, 140, 140], [150, 150, 190, 190], A], [0.9, 0.8, 0.7], [0, 0, 0])
    result = score(in_crowd, target)
    assert result["ap"] == 1
    assert result["objects"] == 1
    # A crowd of another class does not excuse them.
    other = score(in_crowd, truth([A, [100, 100, 200, 200]], [0, 1], ignored=[False, True]))
    assert other["ap"] == pytest.approx(1 / 3)
    assert other["per_class"]["dog"] is None


def test_nothing_to_find():
    metric = AveragePrecision(CLASSES)
    assert metric.compute()["ap"] is None
    metric.update([found([A], [0.9], [0])], [truth([], [])])
    scores = metric.compute()
    assert scores["ap"] is None
    assert (scores["images"], scores["objects"]) == (1, 0)


def random_images(count: int, seed: int) -> tuple[list[Detections], list[Boxes]]:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    detections, targets = [], []
    for image_id in range(count):
        n = int(torch.randint(0, 6, (), generator=generator))
        corner, side = rand(n, 2) * 150, 8 + rand(n, 2) * 140
        boxes = torch.cat([corner, corner + side], 1)
        labels = torch.randint(0, 3, (n,), generator=generator)
        targets.append(
            truth(
                boxes.tolist(),
                labels.tolist(),
                ignored=(rand(n) < 0.2).tolist(),
                image_id=7 * image_id + 3,
                size=(300, 300),
            )
        )
        near = (boxes + torch.randn(n, 4, generator=generator) * 4).repeat(2, 1)
        guessed = torch.cat([near, torch.tensor([[10.0, 10, 80, 80]])])
        guessed[:, 2:] = torch.maximum(guessed[:, 2:], guessed[:, :2] + 1)
        wrong = torch.randint(0, 3, (len(guessed),), generator=generator)
        right = torch.cat([labels, labels, torch.zeros(1, dtype=torch.int64)])
        label = torch.where(rand(len(guessed)) < 0.8, right, wrong)
        order = rand(len(guessed)).sort(descending=True)
        detections.append(Detections(guessed[order.indices], order.values, label[order.indices]))
    return detections, targets


def test_equal_to_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    detections, targets = random_images(30, seed=0)
    metric = AveragePrecision(CLASSES, [1, 18, 21])
    metric.update(detections, targets)
    annotations = [
        {
            "image_id": t.image_id,
            "category_id": [1, 18, 21][k],
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
            "area": a,
            "iscrowd": int(i),
        }
        for t in targets
        for b, k, i, a in zip(
            t.boxes.tolist(), t.labels.tolist(), t.ignored.tolist(), t.areas.tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = coco.COCO()
        oracle.dataset = {
            "info": {},
            "images": [{"id": t.image_id, "height": 300, "width": 300} for t in targets],
            "categories": [{"id": i, "name": str(i)} for i in (1, 18, 21)],
            "annotations": [{"id": i, **a} for i, a in enumerate(annotations, 1)],
        }
        oracle.createIndex()
        result = evaluation.COCOeval(oracle, oracle.loadRes(metric.results()), "bbox")
        result.evaluate()
        result.accumulate()
        result.summarize()
    scores = metric.compute()
    assert [scores[name] for name in NAMES] == pytest.approx(result.stats.tolist(), abs=1e-6)
    assert 0.05 < scores["ap"] < 0.95
    assert all(v is not None for v in scores["per_class"].values())
    mean = sum(scores["per_class"].values()) / 3
    assert scores["ap"] == pytest.approx(mean)


class NoDouble(torch.Tensor):
    """As on Apple's MPS: float64 only after `cpu`."""

    def double(self):
        raise TypeError("no float64 here")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_float64_is_left_to_the_cpu():
    mine, target = found([[0, 0, 10, 10]], [0.9], [0]), truth([[0, 0, 10, 10]], [0])
    mine = replace(
        mine, boxes=mine.boxes.as_subclass(NoDouble), scores=mine.scores.as_subclass(NoDouble)
    )
    target = replace(
        target, boxes=target.boxes.as_subclass(NoDouble), areas=target.areas.as_subclass(NoDouble)
    )
    assert score(mine, target)["ap"] == 1


def test_order_of_images_does_not_matter():
    detections, targets = random_images(12, seed=1)
    forward, backward = AveragePrecision(CLASSES), AveragePrecision(CLASSES)
    forward.update(detections, targets)
    for d, t in reversed(list(zip(detections, targets, strict=True))):
        backward.update([d], [t])
    assert forward.compute() == backward.compute()
    assert forward.results() == backward.results()


def test_results_use_the_files_ids():
    metric = AveragePrecision(CLASSES, [1, 18, 21])
    metric.update([found([[10, 20, 40, 80]], [0.75], [1])], [truth([A], [0], image_id=139)])
    assert metric.results() == [
        {"image_id": 139, "category_id": 18, "bbox": [10.0, 20.0, 30.0, 60.0], "score": 0.75}
    ]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 values for 3 classes"):
        AveragePrecision(CLASSES, [1, 2])
    metric = AveragePrecision(CLASSES)
    with pytest.raises(ValueError, match="1 images for truth of 2"):
        metric.update([found([], [], [])], [truth([], [])] * 2)
    metric.update([found([], [], [])], [truth([], [])])
    with pytest.raises(ValueError, match="image id 1 comes twice"):
        metric.update([found([], [], [])], [truth([], [])])


def test_missing_package_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "faster_coco_eval":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'densekd\[det\]'"):
        score(found([A], [0.9], [0]), truth([A], [0]))
