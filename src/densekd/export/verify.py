"""An exported file against the network that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from densekd.errors import UserError
from densekd.export.graph import Graph

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Gap:
    """How far the file's answer is from PyTorch's at one shape.

    Attributes:
        error: the largest difference as a share of the largest value (at least 1). Of classes: by how much the score
            of the file's class stays below the best score.
        differing: share of the pixels whose class is another one.
    """

    shape: tuple[int, ...]
    error: float
    differing: float


@torch.no_grad()
def compare(graph: Graph, run: Callable[[np.ndarray], np.ndarray], who: str) -> list[Gap]:
    """Random images of the graph's three shapes through both.

    Raises:
        UserError: the file does not run at a shape, or is further off than `TOLERANCE`.
    """
    draw = np.random.default_rng(0)
    gaps = []
    for shape in graph.shapes():
        images = draw.random(shape, dtype=np.float32)
        scores = graph.module.scores(torch.from_numpy(images))
        try:
            answer = run(images)
        except Exception as error:  # the runtimes have no common base class
            raise UserError(
                f"{who} fails at {shape}, so no file is written: {str(error).splitlines()[0]}"
            ) from error
        gap = _gap(shape, scores, torch.from_numpy(np.asarray(answer)), graph.module.end)
        if not gap.error <= TOLERANCE:
            raise UserError(
                f"{who} is {gap.error:.2g} off PyTorch at {shape}; at most {TOLERANCE} is allowed, so no file is "
                "written"
            )
        gaps.append(gap)
    return gaps


def _gap(shape: tuple[int, ...], scores: torch.Tensor, answer: torch.Tensor, end: str) -> Gap:
    largest = max(1.0, float(scores.abs().max()))
    if end != "argmax":
        if answer.shape != scores.shape:
            return Gap(shape, float("inf"), 0.0)
        return Gap(shape, float((answer - scores).abs().max()) / largest, 0.0)
    if answer.shape != (len(scores), *scores.shape[-2:]):
        return Gap(shape, float("inf"), 1.0)
    best, classes = scores.max(1)
    chosen = scores.gather(1, answer.long()[:, None])[:, 0]
    differing = float((classes != answer).float().mean())
    return Gap(shape, float((best - chosen).max()) / largest, differing)
