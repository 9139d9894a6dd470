"""The frozen teacher: in eval mode for good, without gradients, in its own precision, layout and batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from densekd.models.taps import Taps
from densekd.types import DenseOutput, DetectorOutput, SetPrediction


class Program(Protocol):
    """A teacher's forward pass in another runtime than PyTorch.

    Attributes:
        prediction: whether it gives the prediction too, and not the features alone.
    """

    prediction: bool

    def __call__(self, images: Tensor) -> DenseOutput:
        """(N, C, H, W) RGB in [0, 1] -> prediction and tapped features."""
        ...


class Teacher(nn.Module):
    """Wraps a tapped network so that nothing can train it by accident.

    Args:
        network: the tapped network; its parameters stop requiring gradients.
        dtype: autocast to this dtype in the forward pass; None keeps whatever autocast state the caller has.
        channels_last: lay out the images so (or, with False, contiguously); None takes them as they come. The network's
            own memory format is the caller's to set.
        batch_size: see at most so many images at a time, where memory is short; None: all at once.

    Attributes:
        program: computes what it gives in the network's place, where it is set; the network is asked for the rest.

    `train()` leaves it in eval mode: a teacher whose norms follow the batch is another, worse teacher.
    Outputs come from ``no_grad`` (not ``inference_mode``, whose tensors cannot enter a backward pass).
    """

    def __init__(
        self,
        network: Taps,
        *,
        dtype: torch.dtype | None = None,
        channels_last: bool | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more, or None")
        self.network = network.requires_grad_(False)
        self.dtype = dtype
        self.channels_last = channels_last
        self.batch_size = batch_size
        self.program: Program | None = None
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, prediction: bool = True) -> DenseOutput:
        """(N, C, H, W) RGB in [0, 1] -> prediction and tapped features.

        Args:
            prediction: False where only the features are wanted: see `Taps.forward`.
        """
        program = self.program
        if program is not None and (program.prediction or not prediction):
            return joined([program(part) for part in images.split(self.batch_size or len(images))])
        if self.channels_last is not None:
            images = images.contiguous(
                memory_format=torch.channels_last if self.channels_last else torch.contiguous_format
            )
        parts = images.split(self.batch_size or len(images))
        with self._autocast(images.device.type):
            return joined([self.network(part, prediction=prediction) for part in parts])

    def answers(self, output: DenseOutput) -> bool:
        """Whether an output of this teacher is of numbers; a class that it does not know has the logit -inf."""
        return _is_finite(output, -torch.inf if self.network.label_space is not None else None)

    def _autocast(self, device: str) -> AbstractContextManager:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32)


def _is_finite(value: Any, allowed: float | None) -> bool:
    if isinstance(value, Tensor):
        return bool(
            (value.isfinite() if allowed is None else value.isfinite() | (value == allowed)).all()
        )
    if is_dataclass(value):
        return all(_is_finite(getattr(value, f.name), allowed) for f in fields(value))
    if isinstance(value, dict):
        return all(_is_finite(inner, allowed) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_finite(inner, allowed) for inner in value)
    return True


def joined(parts: Sequence[DenseOutput]) -> DenseOutput:
    """The outputs of a batch's parts as those of the batch."""
    if len(parts) == 1:
        return parts[0]
    return DenseOutput(
        prediction=_joined([p.prediction for p in parts]),
        aux=_joined([p.aux for p in parts]),
        features={k: _joined([p.features[k] for p in parts]) for k in parts[0].features},
    )


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, list):
        return [_joined(list(level)) for level in zip(*values, strict=True)]
    if isinstance(first, DetectorOutput):  # anchors are of the image size, not of the image
        names = ("logits", "boxes", "centerness")
        return replace(first, **{k: _joined([getattr(v, k) for v in values]) for k in names})
    if isinstance(first, SetPrediction):
        return replace(
            first, **{k: _joined([getattr(v, k) for v in values]) for k in ("logits", "boxes")}
        )
    raise ValueError(
        f"a {type(first).__name__} cannot be joined; leave the teacher's batch_size out"
    )
