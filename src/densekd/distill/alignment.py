"""What is made equal between a student and its teachers before they are compared, in words, as measured on a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from densekd.distill.maps import compared_size, is_prediction
from densekd.distill.term import Term
from densekd.models.taps import Taps
from densekd.tasks import Task
from densekd.types import InputSpec


def input_lines(
    student: Taps, teachers: Mapping[str, Taps], size: tuple[int, int]
) -> Iterator[str]:
    """A line for each teacher that sees other images than the student.

    Args:
        size: (height, width) of the images.
    """
    own_size = student.seen_size(*size)
    for name, teacher in teachers.items():
        other_size = teacher.seen_size(*size)
        parts = input_differences(student.input_spec, teacher.input_spec)
        if other_size != own_size:
            parts.append(f"{_grid(other_size)} pixels instead of {_grid(own_size)}")
        if parts:
            yield f"{_called(name)} sees its own input: {', '.join(parts)}"


def input_differences(student: InputSpec | None, teacher: InputSpec | None) -> list[str]:
    """What the teacher's input has otherwise than the student's; empty where both see the same."""
    if student == teacher:
        return []
    if teacher is None:
        return ["pixels in [0, 1] as they are, and the student's are normalised"]
    if student is None:
        return ["normalised pixels, and the student's are in [0, 1] as they are"]
    parts = []
    for name in ("order", "range", "mean", "std"):
        own, other = getattr(student, name), getattr(teacher, name)
        if own != other:
            parts.append(f"{name} {_value(other)} instead of {_value(own)}")
    return parts


def term_line(
    term: Term,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    other: Sequence[Tensor],
    taps: tuple[Taps, Taps | None],
    task: Task,
) -> str | None:
    """What is done to the maps of a term; None where they are compared as they are.

    Args:
        before, after: the student's maps without and with the adapter.
        other: the teacher's maps.
        taps: the student's, and those of the teacher whose map it is (None: the mean of several).
    """
    teacher = f"{_called(term.teacher_name or '')}'s"
    parts = []
    for whose, tapped, source, maps in (
        ("the student's", taps[0], term.student, before),
        (teacher, taps[1], term.teacher, other),
    ):
        if tapped is not None and not is_prediction(source, task):
            parts += [f"{whose} {source}: {text}" for text in _layouts(tapped, source, maps)]
    if term.adapter is not None:
        widths = _each(f"{x.shape[1]} -> {y.shape[1]}" for x, y in zip(before, after, strict=True))
        parts.append(
            f"the student's {term.student}: {widths} channels by a {_kind(term.adapter)} that trains with the student "
            "and is not exported"
        )
    parts += _sizes(term.wants.size, term.student, term.teacher, after, other, teacher)
    return f"{term.name}: {'; '.join(parts)}" if parts else None


def holistic_line(student: Tensor, teacher: Tensor) -> str | None:
    """The same for the two maps that the discriminator scores."""
    parts = list(_sizes(None, "prediction", "prediction", [student], [teacher], "the teacher's"))
    return f"holistic: {'; '.join(parts)}" if parts else None


def _sizes(
    fixed: tuple[int, int] | None,
    own_name: str,
    other_name: str,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    whose: str,
) -> Iterator[str]:
    """How maps of different sizes become one, as `Term` does it; `fixed` is the size that a loss asks for."""
    own, other = [], []
    for x, y in zip(student, teacher, strict=True):
        size = fixed or compared_size(x, y)
        if tuple(x.shape[-2:]) != tuple(size):
            own.append(f"{_grid(x.shape[-2:])} -> {_grid(size)}")
        if tuple(y.shape[-2:]) != tuple(size):
            other.append(f"{_grid(y.shape[-2:])} -> {_grid(size)}")
    if own:
        yield f"the student's {own_name} is resized, {_each(own)}"
    if other:
        yield f"{whose} {other_name} is resized, {_each(other)}"


def _layouts(tapped: Taps, source: str, maps: Sequence[Tensor]) -> Iterator[str]:
    """Tokens and channels-last maps that became maps (N, C, h, w)."""
    recorder = tapped.recorders.get(source)
    turned = [] if recorder is None else recorder.turned
    if len(turned) != len(maps) and len(turned) > 0:
        yield f"{len(turned)} of {len(maps)} levels are made maps"
        return
    for shape, found in zip(turned, maps, strict=False):
        grid = found.shape[-2:]
        if len(shape) == 4:
            yield f"channels come last, and first in the map {_grid(grid)}"
            continue
        dropped = shape[1] - grid[0] * grid[1]
        more = f", without the first {dropped} (class or register)" if dropped else ""
        yield f"{shape[1]} tokens become a map {_grid(grid)}{more}"


def _kind(adapter: nn.Module) -> str:
    if isinstance(adapter, nn.Conv2d):
        return f"{_grid(adapter.kernel_size)} convolution"
    return type(adapter).__name__


def _called(name: str) -> str:
    return f"teacher {name}" if name else "the teacher"


def _each(texts: Iterator[str] | Sequence[str]) -> str:
    """Every different one, in order."""
    return ", ".join(dict.fromkeys(texts))


def _grid(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{v:.4g}" for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
