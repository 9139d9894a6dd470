"""An exported file against the network that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from densekd.errors import UserError, first_line
from densekd.export.graph import OF_BOXES, Graph
from densekd.types import FinalBoxes

TOLERANCE = 1e-3
# Of a network that was trained to be int8 the mean difference: a sum near the middle of two of the 256 values falls to
# either side, and what follows carries that on.
ROUNDED_TOLERANCE = 1e-2
MISSING = 0.05  # of the boxes after NMS; what is decided by a hair may be decided otherwise


@dataclass(frozen=True)
class Gap:
    """How far the file's answer is from PyTorch's at one shape.

    Attributes:
        error: the largest difference as a share of the largest value (at least 1). Of classes: by how much the score
            of the file's class stays below the best score. Of a network that was trained to be int8 the mean in place
            of the largest.
        differing: share of the pixels whose class is another one, or of the boxes after NMS without their like.
    """

    shape: tuple[int, ...]
    error: float
    differing: float


@torch.no_grad()
def compare(
    graph: Graph, run: Callable[[np.ndarray], Any], who: str, tolerance: float | None = TOLERANCE
) -> list[Gap]:
    """Random images of the graph's three shapes through both.

    Args:
        tolerance: None allows any difference, as of an int8 file.

    Raises:
        UserError: the file does not run at a shape, or is further off than `tolerance`.
    """
    draw = np.random.default_rng(0)
    gaps = []
    for shape in graph.shapes():
        images = draw.random(shape, dtype=np.float32)
        expected = _expected(graph, torch.from_numpy(images))
        try:
            answer = run(images)
        except Exception as error:  # the runtimes have no common base class
            raise UserError(
                f"{who} fails at {shape}, so no file is written: {first_line(error)}"
            ) from error
        answers = answer if isinstance(answer, tuple) else (answer,)
        if len(answers) != len(expected):
            raise UserError(f"{who} gives {len(answers)} outputs; expected {len(expected)}")
        found = [torch.from_numpy(np.asarray(a)) for a in answers]
        if graph.module.end == "detections":
            gap = _detections_gap(shape, FinalBoxes(*expected), FinalBoxes(*found))
        else:
            parts = [
                _gap(shape, e, a, graph.module.end, mean=graph.int8)
                for e, a in zip(expected, found, strict=True)
            ]
            gap = max(parts, key=lambda part: part.error)
        if tolerance is not None and not gap.error <= tolerance:
            raise UserError(
                f"{who} is {gap.error:.2g} off PyTorch at {shape}; at most {tolerance} is allowed, so no file is "
                "written"
            )
        gaps.append(gap)
    return gaps


def _expected(graph: Graph, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """PyTorch's outputs; of classes their scores."""
    if graph.module.end not in OF_BOXES:
        return (graph.module.scores(images),)
    outputs = graph.module(images)
    assert isinstance(outputs, tuple)
    return outputs


def _gap(
    shape: tuple[int, ...],
    scores: torch.Tensor,
    answer: torch.Tensor,
    end: str,
    *,
    mean: bool = False,
) -> Gap:
    largest = max(1.0, float(scores.abs().max()))
    if end != "argmax":
        if answer.shape != scores.shape:
            return Gap(shape, float("inf"), 0.0)
        return Gap(shape, float(_one((answer - scores).abs(), mean)) / largest, 0.0)
    if answer.shape != (len(scores), *scores.shape[-2:]):
        return Gap(shape, float("inf"), 1.0)
    best, classes = scores.max(1)
    chosen = scores.gather(1, answer.long()[:, None])[:, 0]
    differing = float((classes != answer).float().mean())
    return Gap(shape, float(_one(best - chosen, mean)) / largest, differing)


def _detections_gap(shape: tuple[int, ...], expected: FinalBoxes, found: FinalBoxes) -> Gap:
    """The share of boxes without their like, in score, class and place, among those of the other.

    Boxes of nearly equal scores may come in another order, and of two whose overlap is nearly the threshold one runtime
    may keep what the other drops.
    """
    if any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
        return Gap(shape, float("inf"), 1.0)
    limit = TOLERANCE * max(shape[-2:])
    alone = total = 0
    for one, other in ((expected, found), (found, expected)):
        for image, labels in enumerate(one.labels):
            there = labels >= 0
            same = labels[there][:, None] == other.labels[image][None]
            near = (one.boxes[image][there][:, None] - other.boxes[image][None]).abs().amax(-1)
            apart = (one.scores[image][there][:, None] - other.scores[image][None]).abs()
            like = same & (near <= limit) & (apart <= TOLERANCE)
            alone += int((~like.any(1)).sum())
            total += int(there.sum())
    share = alone / max(total, 1)
    return Gap(shape, 0.0 if share <= MISSING else share, share)


def _one(differences: torch.Tensor, mean: bool) -> torch.Tensor:
    return differences.double().mean() if mean else differences.max()
