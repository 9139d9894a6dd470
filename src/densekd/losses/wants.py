"""What a loss asks for beyond two maps of one size and a mask: declared by the loss, read once by its term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Wants:
    """A loss class says it as the attribute (or property) ``wants``. Without one, none of this is asked for.

    A term calls ``loss(student, teacher, mask=mask)``, once a level of a pyramid, with what is asked for here besides.

    Attributes:
        adapter: student and teacher must have equal widths; where they differ, a learned 1x1 convolution brings the
            student's feature to the teacher's.
        confidence: pass ``weight=``, (N, 1, h, w) in [0, 1]: how confident the teacher is at each place of the maps.
        targets: pass ``targets=``, the batch's targets as the task has them, at the size of the images (class maps:
            (N, H, W) int64 with ignore_index).
        step: pass ``step=``, the number of optimizer steps done, from 0.
        size: (h, w) at which the loss compares. It resizes both maps itself, which then come as they are; the mask
            comes at this size.
        reduce: ``reduce(teacher, mask)`` is all that the loss needs of the teacher's map (N, C, h, w). A store keeps it
            in place of the map, and the loss is called with it and ``pooled_teacher=True``.
        softmax_alone: of logits, the loss uses the softmax over channels and nothing else, at any temperature. The most
            probable classes of the teacher can then stand for its logits.
    """

    adapter: bool = False
    confidence: bool = False
    targets: bool = False
    step: bool = False
    size: tuple[int, int] | None = None
    reduce: Callable[[Tensor, Tensor | None], Tensor] | None = None
    softmax_alone: bool = False


def wants_of(loss: Any) -> Wants:
    """What a loss declares: its ``wants``, or the class attributes ``adapter = True`` and ``confidence = True``.

    Raises:
        ValueError: ``wants`` is something else than `Wants`.
    """
    wants = getattr(loss, "wants", None)
    if wants is None:
        # `is True`: a loss may have a module of its own under such a name.
        adapter, confidence = (getattr(loss, name, False) is True for name in _FLAGS)
        return Wants(adapter=adapter, confidence=confidence)
    if not isinstance(wants, Wants):
        raise ValueError(
            f"{type(loss).__name__}.wants is a {type(wants).__name__}; expected densekd.losses.Wants(...)"
        )
    return wants


_FLAGS = ("adapter", "confidence")
