"""Networks asked about the validation images: scores of each image, confusion, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from densekd.metrics.calibration import Calibration
from densekd.models.taps import evaluating
from densekd.ops.tiling import Views, predict_dense
from densekd.tasks import Task
from densekd.tasks.segmentation import Segmentation
from densekd.types import Batch


@dataclass
class Examined:
    """What one network's answers came to.

    Attributes:
        images: score of each labelled image by the number of its batch; None where it has none (no object, no depth).
        scores: of all images that were looked at.
        confusion: (K, K) counts, a row a true class; segmentation only.
        calibration: see `Calibration.compute`; segmentation only.
    """

    images: dict[int, float | None] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    confusion: list[list[int]] | None = None
    calibration: dict[str, Any] | None = None


@torch.no_grad()
def examine(
    networks: Sequence[nn.Module],
    batches: Iterable[Batch],
    task: Task,
    views: Views,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> list[Examined]:
    """Score every network on batches of one image each.

    Args:
        networks: tapped, on `device`.
        progress: called with the number of images done.
    """
    found = [Examined() for _ in networks]
    totals = [task.metric(device) for _ in networks]
    sure = [Calibration(device=device) for _ in networks]
    main = task.metric_names[0]
    for number, batch in enumerate(batches):
        batch = batch.to(device)
        if len(batch) != 1:
            raise ValueError(f"a batch has {len(batch)} images; expected one")
        for one, total, calibration, network in zip(found, totals, sure, networks, strict=True):
            with evaluating(network):
                answer = ask(network, batch, task, views, calibration)
            if not bool(batch.labelled[0]):
                continue
            total.update(answer, batch)
            alone = task.metric(device)
            alone.update(answer, batch)
            value = alone.compute().get(main)
            one.images[number] = value if value is None or math.isfinite(value) else None
        if progress is not None:
            progress(1)
    for one, total, calibration in zip(found, totals, sure, strict=True):
        one.scores = total.compute()
        if isinstance(task, Segmentation):
            one.confusion = total.confusion.counts.tolist()  # type: ignore[attr-defined]
            one.calibration = calibration.compute()
    return found


def ask(
    network: nn.Module, batch: Batch, task: Task, views: Views, calibration: Calibration
) -> Any:
    """The answer as `Task.predict` gives it; segmentation counts its confidence on the way."""
    if not isinstance(task, Segmentation):
        return task.predict(network, batch, views)
    size = (batch.images.shape[-2], batch.images.shape[-1])
    scores = predict_dense(lambda x: network(x).prediction, batch.images, size, views)
    if views.count == 1:  # several views come back as probabilities
        scores = scores.softmax(1)
    confidence, answer = scores.max(1)
    known = batch.targets != task.ignore_index
    calibration.update(confidence[known], (answer == batch.targets)[known])
    return answer


def choose(
    scores: dict[int, float | None],
    before: dict[int, float | None] | None,
    *,
    smaller: bool,
    each: int = 3,
) -> list[tuple[int, str]]:
    """(image, why) of the images worth a look: where distillation helped and hurt most, the best, the worst.

    An image stands once, for the first reason.

    Args:
        scores: of the network that the report is about.
        before: of the student alone, where there is one.
        smaller: whether the score is an error.
        each: images a reason.
    """
    sign = -1.0 if smaller else 1.0
    known = {i: sign * v for i, v in scores.items() if v is not None}
    ranked = sorted(known, key=lambda i: (known[i], i))
    groups = [("worst", ranked), ("best", ranked[::-1])]
    if before is not None:
        gains = {i: known[i] - sign * v for i, v in before.items() if v is not None and i in known}
        by_gain = sorted(gains, key=lambda i: (-gains[i], i))
        groups += [
            ("largest gain", [i for i in by_gain if gains[i] > 0]),
            ("largest loss", [i for i in by_gain[::-1] if gains[i] < 0]),
        ]
    chosen: dict[int, str] = {}
    for why, images in groups:
        fresh = [i for i in images if i not in chosen]
        chosen |= dict.fromkeys(fresh[:each], why)
    order = [why for why, _ in (groups[2:] + groups[:2])]
    return sorted(chosen.items(), key=lambda pair: order.index(pair[1]))


def pairs_confused(
    confusion: Sequence[Sequence[int]], most: int = 8
) -> list[tuple[int, int, float]]:
    """(true class, answer, share of the true class's pixels) of the largest confusions."""
    found = []
    for true, row in enumerate(confusion):
        total = sum(row)
        found += [
            (true, answer, count / total)
            for answer, count in enumerate(row)
            if answer != true and count
        ]
    return sorted(found, key=lambda entry: -entry[2])[:most]


def shares(confusion: Tensor | Sequence[Sequence[int]]) -> list[list[float | None]]:
    """Each count by the pixels of its true class; None in the row of a class that does not occur."""
    table = torch.as_tensor(confusion, dtype=torch.float64)
    totals = table.sum(1, keepdim=True)
    rows = (table / totals.clamp(min=1)).tolist()
    return [
        row if total else [None] * len(row)
        for row, total in zip(rows, totals[:, 0].tolist(), strict=True)
    ]
