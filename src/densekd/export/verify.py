"""An exported file against the network that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
                f"{who} fails at {shape}, so no file is written: {str(error).splitlines()[0]}"
            ) from error
        answers = answer if isinstance(answer, tuple) else (answer,)
        if len(answers) != len(expected):
            raise UserError(f"{who} gives {len(answers)} outputs; expected {len(expected)}")
        parts = [
            _gap(shape, e, torch.from_numpy(np.asarray(a)), graph.module.end)
            for e, a in zip(expected, answers, strict=True)
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
    if graph.module.end != "boxes":
        return (graph.module.scores(images),)
    outputs = graph.module(images)
    assert isinstance(outputs, tuple)
    return outputs


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
