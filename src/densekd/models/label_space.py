"""A network's classes put together to other classes: 19 classes that answer for 11 or 7, or a detector's 91 for 20."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.errors import UserError
from densekd.types import DetectorOutput, SetPrediction

FLOOR = -30.0  # the log-probability of a class that the network does not know: 1e-13, and finite
REST = -1  # the index of "none of the channels", with the activation sigmoid
ACTIVATIONS = ("softmax", "sigmoid", "none")


class LabelSpace:
    """Logits of a network's classes -> log-probabilities of other classes; a detector's scores -> other scores.

    Of a map, the probability of a class is the sum of those of its indices. What belongs to no class is left out, and
    the rest is made to sum to 1 again: log softmax over the classes of log Σ exp(logits of the class). Of a detector,
    see `detector_classes`.

    Args:
        groups: for each new class, the network's indices that belong to it; empty where the network knows no such
            class.
        inputs: how many classes the network predicts; None takes any number that has all indices.
        activation: what makes probabilities of a map's channels. ``"softmax"``: they are one distribution.
            ``"sigmoid"``: each is a yes or no of its own, and the distribution is that under the condition that at most
            one is a yes, softmax(z_1, ..., z_n, 0), whose last entry is "none of them": index -1. (With one channel it
            is sigmoid(z) and 1 - sigmoid(z). Without the index -1, it is left out: exactly one is a yes.)
            ``"none"``: the map holds probabilities already.

    Raises:
        ValueError: an index stands twice or is out of range, or there is none at all.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        inputs: int | None = None,
        activation: str = "softmax",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}"
            )
        self.groups = [list(group) for group in groups]
        self.inputs = inputs
        self.activation = activation
        self.used = sorted(index for group in self.groups for index in group)
        if not self.used:
            raise ValueError("no class has an index of the network's")
        twice = sorted({i for i in self.used if self.used.count(i) > 1})
        if twice:
            raise ValueError(f"index {twice[0]} stands twice; each may belong to one class")
        least = REST if activation == "sigmoid" else 0
        if self.used[0] < least or (inputs is not None and self.used[-1] >= inputs):
            wrong = self.used[0] if self.used[0] < least else self.used[-1]
            most = "" if inputs is None else f" to {inputs - 1}"
            rest = " (and -1: none of them)" if least == REST else ""
            raise ValueError(f"index {wrong} is out of range; the network's are 0{most}{rest}")

    def __call__(self, prediction: Any) -> Any:
        """(N, inputs, h, w) logits -> (N, classes, h, w) log-probabilities, none below `FLOOR`.

        Of a detector, the same output with other class logits.
        """
        if isinstance(prediction, DetectorOutput | SetPrediction):
            return detector_classes(prediction, self.groups, self.inputs)
        values = self._logits(prediction)
        nothing = values.new_full((values.shape[0], *values.shape[2:]), -torch.inf)
        merged = [values[:, g].logsumexp(1) if g else nothing for g in self.groups]
        return torch.stack(merged, 1).log_softmax(1).clamp(min=FLOOR).to(prediction.dtype)

    def left_over(self, prediction: Tensor) -> float:
        """The mean probability, in [0, 1], of the network's classes that belong to none of the new ones."""
        return float(1 - self._logits(prediction).softmax(1)[:, self.used].sum(1).mean())

    def _logits(self, prediction: Tensor) -> Tensor:
        """(N, inputs, h, w) -> float logits whose softmax is the distribution, with that of "none" last."""
        self._check(prediction)
        values = prediction.float()
        if self.activation == "none":
            return values.clamp(min=0).log().clamp(min=FLOOR)
        if self.activation == "sigmoid":
            return torch.cat([values, torch.zeros_like(values[:, :1])], 1)
        return values

    def _check(self, logits: Tensor) -> None:
        shape = getattr(logits, "shape", ())
        fits = len(shape) == 4 and (
            shape[1] > self.used[-1] if self.inputs is None else shape[1] == self.inputs
        )
        if not fits:
            wanted = self.inputs or f"more than {self.used[-1]}"
            raise UserError(
                f"the prediction has shape {tuple(shape)}, and its classes are to be put together; expected "
                f"(N, {wanted}, h, w) logits"
            )


def detector_classes(
    output: DetectorOutput | SetPrediction, groups: Sequence[Sequence[int]], inputs: int | None
) -> DetectorOutput | SetPrediction:
    """A detector's class scores put together.

    FCOS, RetinaNet and detectors of sets answer yes or no for each class: the score of a class is the largest of its
    indices'. (1 - Π(1 - p) would take them for independent; a car that is half a van would count twice.) SSD has one
    distribution with the background: the probability of a class is the sum of its indices', and what belongs to no
    class is background. A class without an index has the probability 1e-13 everywhere.

    Raises:
        UserError: the detector predicts another number of classes than `inputs`.
    """
    if isinstance(output, SetPrediction):
        check_count(output.logits.shape[-1], groups, inputs)
        return replace(output, logits=largest(output.logits, groups, -1))
    levels = []
    for logits, anchors in zip(output.logits, output.anchors, strict=True):
        a = max(1, len(anchors) // (logits.shape[-2] * logits.shape[-1]))
        by_class = logits.unflatten(1, (a, -1))  # (N, A, K, h, w)
        background = output.kind == "ssd"
        check_count(by_class.shape[2] - background, groups, inputs)
        merged = summed(by_class, groups) if background else largest(by_class, groups, 2)
        levels.append(merged.flatten(1, 2))
    return replace(output, logits=levels)


def largest(logits: Tensor, groups: Sequence[Sequence[int]], dim: int) -> Tensor:
    """The largest logit of each group along `dim`."""
    parts = [
        logits.index_select(dim, torch.tensor(g, device=logits.device)).amax(dim)
        if g
        else torch.full_like(logits.select(dim, 0), FLOOR)
        for g in groups
    ]
    return torch.stack(parts, dim)


def summed(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """(N, A, 1 + K, h, w) of a softmax with the background first -> (N, A, 1 + groups, h, w) log-probabilities."""
    log_p = F.log_softmax(logits.float(), 2)
    used = {index for group in groups for index in group}
    rest = [0, *(i + 1 for i in range(logits.shape[2] - 1) if i not in used)]
    every = [rest, *([index + 1 for index in group] for group in groups)]
    nothing = torch.full_like(log_p[:, :, 0], FLOOR)
    parts = [log_p[:, :, g].logsumexp(2).clamp(min=FLOOR) if g else nothing for g in every]
    return torch.stack(parts, 2).to(logits.dtype)


def check_count(count: int, groups: Sequence[Sequence[int]], inputs: int | None) -> None:
    most = max((index for group in groups for index in group), default=-1)
    if count <= most or (inputs is not None and count != inputs):
        raise UserError(
            f"the detector predicts {count} classes, and they are to be put together; expected "
            f"{inputs or f'more than {most}'}"
        )
