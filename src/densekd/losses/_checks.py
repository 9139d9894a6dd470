"""What every loss asks of its arguments, in one wording."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32 (sums and norms over a map overflow in half precision)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """A context in which matrix products stay in the precision of their operands."""
    return torch.autocast(device_type=x.device.type, enabled=False)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


def check_positive(name: str, value: float) -> None:
    if not value > 0 or value == float("inf"):
        raise ValueError(f"{name} is {value}; it must be a finite number above 0")


def as_class_weights(given: Sequence[float] | Tensor) -> Tensor:
    """Class weights (C,) as float32, checked when a loss is made, so that no step has to ask the device."""
    try:
        weights = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        weights = torch.empty(0)
    finite = weights.ndim == 1 and len(weights) > 0 and bool(torch.isfinite(weights).all())
    if not finite or bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ValueError(
            f"class_weights is {given!r}; expected a finite number for each class, none below 0 and not all 0"
        )
    return weights


def check_class_weights(class_weights: Tensor | None, classes: int) -> None:
    if class_weights is not None and tuple(class_weights.shape) != (classes,):
        raise ValueError(
            f"class_weights have shape {tuple(class_weights.shape)}; expected one weight for each of the "
            f"{classes} classes"
        )


def check_map(name: str, x: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"{name} is {x.dtype} of shape {tuple(x.shape)}; expected a floating (N, C, h, w) map"
        )


def check_pair(student: Tensor, teacher: Tensor, *, same_channels: bool) -> None:
    check_map("student", student)
    check_map("teacher", teacher)
    s, t = tuple(student.shape), tuple(teacher.shape)
    if s[0] != t[0] or s[2:] != t[2:]:
        raise ValueError(
            f"student {s} and teacher {t} must agree in batch and in map size: resize one of them with "
            "densekd.ops.resize.resize_map, or tap layers of the same stride"
        )
    if same_channels and s[1] != t[1]:
        raise ValueError(
            f"student {s} has {s[1]} classes and teacher {t} has {t[1]}: both must predict the same classes"
        )


def check_mask(mask: Tensor | None, x: Tensor) -> None:
    """A mask is (N, h, w) bool at the size of the map it goes with."""
    if mask is None:
        return
    expected = (x.shape[0], *x.shape[-2:])
    if mask.dtype != torch.bool or tuple(mask.shape) != expected:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; expected torch.bool of shape {expected}, "
            "True where a pixel counts: resize it with densekd.ops.resize.resize_labels"
        )
