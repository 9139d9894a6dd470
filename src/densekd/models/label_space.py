"""A network's classes put together to other classes: 19 classes that answer for 11 or 7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densekd.errors import UserError

FLOOR = -30.0  # the log-probability of a class that the network does not know: 1e-13, and finite


class LabelSpace:
    """Logits of a network's classes -> log-probabilities of other classes.

    The probability of a class is the sum of those of its indices. What belongs to no class is left out, and the rest is
    made to sum to 1 again: log softmax over the classes of log Σ exp(logits of the class).

    Args:
        groups: for each new class, the network's indices that belong to it; empty where the network knows no such
            class.
        inputs: how many classes the network predicts; None takes any number that has all indices.

    Raises:
        ValueError: an index stands twice or is out of range, or there is none at all.
    """

    def __init__(self, groups: Sequence[Sequence[int]], inputs: int | None = None) -> None:
        self.groups = [list(group) for group in groups]
        self.inputs = inputs
        self.used = sorted(index for group in self.groups for index in group)
        if not self.used:
            raise ValueError("no class has an index of the network's")
        twice = sorted({i for i in self.used if self.used.count(i) > 1})
        if twice:
            raise ValueError(f"index {twice[0]} stands twice; each may belong to one class")
        if self.used[0] < 0 or (inputs is not None and self.used[-1] >= inputs):
            wrong = self.used[0] if self.used[0] < 0 else self.used[-1]
            most = "" if inputs is None else f" to {inputs - 1}"
            raise ValueError(f"index {wrong} is out of range; the network's are 0{most}")

    def __call__(self, logits: Tensor) -> Tensor:
        """(N, inputs, h, w) logits -> (N, classes, h, w) log-probabilities, none below `FLOOR`."""
        self._check(logits)
        values = logits.float()
        nothing = values.new_full((len(values), *values.shape[2:]), -torch.inf)
        merged = [values[:, g].logsumexp(1) if g else nothing for g in self.groups]
        return torch.stack(merged, 1).log_softmax(1).clamp(min=FLOOR).to(logits.dtype)

    def left_over(self, logits: Tensor) -> float:
        """The mean probability, in [0, 1], of the network's classes that belong to none of the new ones."""
        self._check(logits)
        return float(1 - logits.float().softmax(1)[:, self.used].sum(1).mean())

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
