"""What the engine, the distiller and the commands ask of a task: all that differs between tasks is behind this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from densekd.ops.tiling import Views
from densekd.types import Batch, DenseOutput, Maps


class Column(NamedTuple):
    """A column of a results table: key in the scores, heading, factor (100 for per cent) and decimals."""

    key: str
    heading: str
    factor: float
    decimals: int


class Task(Protocol):
    """One dense task.

    Attributes:
        name: ``"segmentation"``, ``"detection"``, ``"depth"`` or that of a task of yours.
        target: the kind of truth that it takes, a `densekd.targets.TargetKind`.
        classes: names in index order; empty where there are none (depth).
        metric_names: keys of the scores that runs may be chosen by; the first is the task's main one.
        smaller_is_better: those of them that are errors.
        quick_metric: the score that says most about one batch.
        columns: of a results table.
        map_names: what `map` can give besides ``"prediction"``.
        network_arguments: what builders of networks are given where they take it (``num_classes``, ``depth_range``).
        term_options: loss name -> arguments that this task wants of it where the recipe does not say.
        packages: optional; module that the scores need -> our extra that brings it.
        holistic_channels, holistic_activation: of the discriminator's maps; ``"softmax"``, ``"sigmoid"`` or ``"none"``.
    """

    name: str
    target: type
    classes: list[str]
    metric_names: tuple[str, ...]
    smaller_is_better: frozenset[str]
    quick_metric: str
    columns: Sequence[Column]
    map_names: tuple[str, ...]
    network_arguments: Mapping[str, Any]
    term_options: Mapping[str, Mapping[str, Any]]
    holistic_channels: int
    holistic_activation: str

    def check_output(self, output: DenseOutput, who: str) -> None:
        """Raise ValueError unless the network predicts what this task needs."""
        ...

    def loss(self, output: DenseOutput, batch: Batch) -> dict[str, Tensor]:
        """Weighted supervised terms, named ``task/...``; images without labels count nothing."""
        ...

    def mask(self, batch: Batch, kind: str) -> Tensor | None:
        """(N, H, W) bool: which pixels distillation compares; kind is ``"label"``, ``"padding"`` or ``"none"``."""
        ...

    def map(self, output: DenseOutput, name: str = "prediction") -> Maps:
        """What a distillation term compares: a map (N, C, h, w), or a list of one a level."""
        ...

    def confidence(self, output: DenseOutput) -> Maps:
        """In [0, 1], (N, 1, h, w) or one a level: how sure the network is, for terms that weight places by it."""
        ...

    def holistic_map(self, output: DenseOutput) -> Tensor:
        """(N, holistic_channels, h, w) before `holistic_activation`: what the discriminator looks at."""
        ...

    def predict(self, network: nn.Module, batch: Batch, views: Views) -> Any:
        """Decoded predictions of a batch, at the size of its images."""
        ...

    def metric(self, device: torch.device | str = "cpu") -> Metric:
        """A fresh count."""
        ...

    def constant_guess(self, targets: Iterable[Any]) -> Any:
        """The best answer that looks at no image, from training targets as a reader gives them: see `guess`."""
        ...

    def guess(self, constant: Any, batch: Batch) -> Any:
        """`constant_guess` as the prediction of a batch."""
        ...

    def example_targets(self, n: int, size: tuple[int, int], device: torch.device) -> Any:
        """Targets of made-up images, for a dry run."""
        ...

    def picture(self, image: np.ndarray, answer: Any) -> np.ndarray:
        """(H, W, 3) uint8: a target as a reader gives it, or one image's prediction, drawn."""
        ...

    def summary(self, scores: Mapping[str, Any]) -> list[str]:
        """Lines for people, the main score last."""
        ...


class Metric(Protocol):
    """Counts predictions against targets, over all ranks."""

    def update(self, prediction: Any, batch: Batch) -> None: ...

    def compute(self) -> dict[str, Any]:
        """Plain numbers (fractions), lists and dicts by name. Joins all ranks: every rank must call it."""
        ...
