"""Surface normals as a task: all that engine, terms and commands ask of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densekd.ops.resize import resize_labels, resize_map
from densekd.ops.tiling import Views, predict_dense
from densekd.tasks import Column
from densekd.types import Batch, DenseOutput
from normals.loss import angular
from normals.metric import LIMITS, AngleErrors, known_pixels
from normals.target import NormalMap


class Normals:
    """A network gives three channels, whose direction is the normal; see `densekd.tasks.Task` for the members.

    Args:
        weight: the factor of the supervised loss.
    """

    name = "normals"
    target = NormalMap
    metric_names = ("angle", "below_11.25")
    smaller_is_better = frozenset({"angle"})
    quick_metric = "below_22.5"
    columns = (Column("angle", "angle °", 1, 2), Column("below_11.25", "< 11.25°", 100, 2))
    map_names: tuple[str, ...] = ()
    network_arguments: Mapping[str, Any] = {"num_classes": 3}
    term_options: Mapping[str, Mapping[str, Any]] = {}
    holistic_channels = 3
    holistic_activation = "none"

    def __init__(self, *, weight: float = 1.0) -> None:
        if weight <= 0:
            raise ValueError(f"weight is {weight}; expected a number above 0")
        self.weight = weight
        self.classes: list[str] = []  # directions have none

    def check_output(self, output: DenseOutput, who: str) -> None:
        shape = tuple(getattr(output.prediction, "shape", ()))
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"the {who}'s prediction has shape {shape}; normals are (N, 3, h, w)")

    def loss(self, output: DenseOutput, batch: Batch) -> dict[str, Tensor]:
        predicted = resize_map(output.prediction.float(), batch.targets.shape[-2:])
        return {
            "task/angular": self.weight * angular(predicted, batch.targets, known_pixels(batch))
        }

    def mask(self, batch: Batch, kind: str) -> Tensor | None:
        if kind == "none":
            return None
        if kind == "padding":
            return batch.inside
        return known_pixels(batch) | (batch.inside & ~batch.labelled[:, None, None])

    def map(self, output: DenseOutput, name: str = "prediction") -> Tensor:
        return F.normalize(output.prediction.float(), dim=1)

    def confidence(self, output: DenseOutput) -> Tensor:
        """The network does not say how sure it is."""
        return torch.ones_like(output.prediction[:, :1])

    def holistic_map(self, output: DenseOutput) -> Tensor:
        return self.map(output)

    def predict(self, network: nn.Module, batch: Batch, views: Views) -> Tensor:
        """(N, 3, H, W) unit vectors at the size of the batch's images."""

        def vectors(images: Tensor) -> Tensor:
            return predict_dense(
                lambda x: self.map(network(x)),
                images,
                (images.shape[-2], images.shape[-1]),
                replace(views, flip=False),
                average=lambda x: x,
            )

        total = vectors(batch.images)
        if views.flip:
            back = total.new_tensor([-1, 1, 1]).view(1, 3, 1, 1)
            total = total + vectors(batch.images.flip(-1)).flip(-1) * back
        return F.normalize(total, dim=1)

    def metric(self, device: torch.device | str = "cpu") -> AngleErrors:
        return AngleErrors(device)

    def constant_guess(self, targets: Iterable[Any]) -> Tensor:
        """(32, 3): the mean normal at each height of the image, for the ground lies below and walls stand above."""
        total = torch.zeros(1, 3, 32, 1)
        for target, _ in targets:
            normals = torch.from_numpy(target.normals).permute(2, 0, 1)[None]
            total += resize_labels(normals[0], (32, normals.shape[-1]))[None].mean(3, keepdim=True)
        return F.normalize(total, dim=1)

    def guess(self, constant: Tensor, batch: Batch) -> Tensor:
        n, _, height, width = batch.images.shape
        rows = resize_map(constant, (height, 1)).to(batch.images.device)
        return rows.expand(n, 3, height, width)

    def example_targets(self, n: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """Level ground, seen from above."""
        up = torch.tensor([0.0, -1.0, 0.0], device=device)
        return up.view(1, 3, 1, 1).repeat(n, 1, *size)

    def picture(self, image: np.ndarray, answer: Any) -> np.ndarray:
        """(H, W, 3) uint8: x red, y green, z blue, from -1 to 1; unknown black."""
        normals = getattr(answer, "normals", None)
        if normals is None:
            normals = torch.as_tensor(answer).detach().cpu().numpy().transpose(1, 2, 0)
        known = normals.any(axis=2, keepdims=True)
        return ((normals * 0.5 + 0.5) * 255 * known).round().astype(np.uint8)

    def summary(self, scores: Mapping[str, Any]) -> list[str]:
        if not scores["pixels"]:
            return ["no pixel has a known normal to score", "angle -"]
        shares = ", ".join(f"{100 * scores[f'below_{limit:g}']:.2f} %" for limit in LIMITS)
        return [
            f"{scores['pixels']} pixels; below 11.25°, 22.5°, 30°: {shares}",
            f"angle {scores['angle']:.2f}°",
        ]
