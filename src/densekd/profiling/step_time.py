"""The time of a step: its parts, its floor, and what the loop waits for beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from densekd.distill.discriminator import student_score
from densekd.distill.distiller import Distiller
from densekd.distill.source import LiveTeacher
from densekd.engine.step import Step
from densekd.losses import holistic
from densekd.profiling.measure import interleave, ratio, spread, synchronise, timed, total
from densekd.types import Batch

LATE = (
    2**31
)  # a step number at which the student gets the discriminator's term, whatever its start_step
TEACHER, STUDENT, TASK = "teacher", "student forward", "supervised loss"
HOLISTIC = "distill/holistic"
BACKWARD, OPTIMIZER, DISCRIMINATOR, OTHER = "backward", "optimizer", "discriminator", "other"


class Clock:
    """Seconds by name. The time of a part within another counts for the inner part alone.

    It waits for the device wherever a part begins or ends, which keeps a GPU from working ahead: the parts add up to a
    little more than a step without the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        """Count the time since the last call to the innermost part that is open."""
        synchronise(self.device)
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


class _Watched:
    """Stands in for a network and times its calls.

    It is no hook of the module, because hooks of a compiled module would be compiled too, or not run.
    """

    def __init__(self, network: Any, clock: Clock, name: str) -> None:
        self._network = network
        self._clock = clock
        self._name = name

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self._clock.part(self._name):
            return self._network(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    @property
    def __class__(self) -> type:  # isinstance() sees the network
        return type(self._network)


class _WatchedTerms(list):
    """Terms; each round of a loop over them is a part, with all that is done to its maps."""

    def __init__(self, terms: Sequence[Any], clock: Clock) -> None:
        super().__init__(terms)
        self._clock = clock

    def __iter__(self) -> Iterator[Any]:
        for term in super().__iter__():
            with self._clock.part(f"distill/{term.name}"):
                yield term


@contextmanager
def watched(step: Step, clock: Clock) -> Iterator[None]:
    """Within it, `clock` times each part of the calls of `step`; afterwards `step` is as it was."""
    distiller, adversary = step.distiller, step.distiller.adversary

    def timed_method(owner: Any, method: str, name: str) -> tuple[Any, str, Any]:
        call = getattr(owner, method)

        def watch(*args: Any, **options: Any) -> Any:
            with clock.part(name):
                return call(*args, **options)

        return owner, method, watch

    swaps = [
        (distiller, "student", _Watched(distiller.student, clock, STUDENT)),
        (distiller, "terms", _WatchedTerms(distiller.terms, clock)),
        timed_method(distiller.task, "loss", TASK),
        timed_method(
            distiller, "student_phase", OTHER
        ),  # masks, and maps of one size for the discriminator
        # What is left of it is the backward pass, with the gradient's norm and the scalars' way to the CPU.
        timed_method(step, "_student_gradients", BACKWARD),
        timed_method(step, "_apply", OPTIMIZER),
    ]
    if distiller.source is not None:
        live = _live(distiller)
        swaps += [
            (live, "teacher", _Watched(live.teacher, clock, TEACHER)),
            (live, "terms", _WatchedTerms(live.terms, clock)),
        ]
    if adversary is not None:
        assert step.discriminator_optimizer is not None
        swaps += [
            timed_method(adversary.discriminator, "forward", HOLISTIC),
            timed_method(step, "_discriminator_gradients", DISCRIMINATOR),
            timed_method(step.discriminator_optimizer, "step", DISCRIMINATOR),
        ]
    with _swapped(swaps):
        yield


@contextmanager
def _swapped(swaps: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Within it ``owner.name`` is another thing, for each (owner, name, other thing)."""
    before = [(owner, name, name in vars(owner), getattr(owner, name)) for owner, name, _ in swaps]
    try:
        for owner, name, stand_in in swaps:
            setattr(owner, name, stand_in)
        yield
    finally:
        for owner, name, own, old in before:
            if own:
                setattr(owner, name, old)
            else:  # a method: the class has it
                delattr(owner, name)


def _live(distiller: Distiller) -> LiveTeacher:
    """The source of the teacher's maps: only a live teacher has a time of its own."""
    assert isinstance(distiller.source, LiveTeacher)
    return distiller.source


def floor_of(step: Step, alone: Step, group: Sequence[Batch]) -> dict[str, Callable[[], Any]]:
    """Name -> one call of a part that every distillation step needs; together the parts are its floor.

    Args:
        alone: the student's own step, without a teacher.
        group: the step's batches, on its device.
    """
    teacher, adversary = step.distiller.teacher, step.distiller.adversary
    assert teacher is not None, "no teacher: the step is its own floor"
    calls_of_teacher: list[tuple[Any, Any]] = []  # the arguments of the step's calls of the teacher

    def ask(*args: Any, **options: Any) -> Any:
        calls_of_teacher.append((args, options))
        return teacher(*args, **options)

    with _swapped([(_live(step.distiller), "teacher", ask)]), step._autocast():
        kept = [step.distiller.student_phase(batch, LATE)[1] for batch in group]

    def forward() -> None:
        with step._autocast():
            for args, options in calls_of_teacher:
                teacher(*args, **options)

    calls: dict[str, Callable[[], Any]] = {
        "teacher": forward,
        "student": lambda: alone(group, LATE),
    }
    if adversary is None:
        return calls

    def discriminator() -> None:
        """Scoring the student's map with the gradient back to it, then the discriminator's own phase."""
        optimizer = step.discriminator_optimizer
        assert optimizer is not None
        for maps in kept:
            assert maps is not None
            seen = maps.student.clone().requires_grad_()
            scores = student_score(adversary.discriminator, maps.images, seen, maps.mask)
            holistic(scores, mode=adversary.mode).backward()
        optimizer.zero_grad(set_to_none=True)
        for maps in kept:
            assert maps is not None
            losses = step.distiller.discriminator_phase(maps)
            (torch.stack(list(losses.values())).sum() / len(kept)).backward()
        optimizer.step()

    return {**calls, "discriminator": discriminator}


def time_step(
    step: Step,
    group: Sequence[Batch],
    *,
    alone: Step | None = None,
    rounds: int = 20,
    warmup: int = 2,
    progress: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """One step on batches at hand: its time, its parts and its ratio to its floor, in interleaved rounds.

    Args:
        group: the step's batches, on its device.
        alone: the student's own step; None where `step` has no teacher, and so no ratio.
        progress: called after each timed call.

    Returns:
        ``{"step": spread, "parts": {name: spread}, "floor": {name: spread}, "ratio": spread or None}`` in seconds (see
        `measure.spread`). The part ``"other"`` is what the step takes beyond all named parts, round by round; it may
        be negative, since watching costs time.
    """
    device = step.device
    seen: list[dict[str, float]] = []

    def parts() -> float:
        clock = Clock(device)
        with watched(step, clock):
            seconds = timed(lambda: step(group, LATE), device)
        seen.append(clock.seconds)
        return seconds

    def counted(call: Callable[[], float]) -> float:
        seconds = call()
        if progress is not None:
            progress()
        return seconds

    arms: dict[str, Callable[[], float]] = {
        "step": partial(timed, lambda: step(group, LATE), device),
        "parts": parts,
    }
    floor = {} if alone is None else floor_of(step, alone, group)
    arms.update({f"floor {name}": partial(timed, call, device) for name, call in floor.items()})
    seconds = interleave(
        {name: partial(counted, arm) for name, arm in arms.items()}, pairs=rounds, warmup=warmup
    )
    found = by_part(part_names(step), seen[-rounds:], seconds["step"])
    below = {name: seconds[f"floor {name}"] for name in floor}
    return {
        "step": spread(seconds["step"]),
        "parts": {name: spread(values) for name, values in found.items()},
        "floor": {name: spread(values) for name, values in below.items()},
        "ratio": ratio(seconds["step"], total(*below.values())) if below else None,
        "watching": ratio(seconds["parts"], seconds["step"]),
        "raw_seconds": {"step": seconds["step"], **found, **{f"floor {k}": v for k, v in below.items()}},
    }  # fmt: skip


def part_names(step: Step) -> list[str]:
    """The named parts of a step, in the order in which they come first."""
    distiller = step.distiller
    adversary = [] if distiller.adversary is None else [HOLISTIC]
    return [
        *([] if distiller.teacher is None else [TEACHER]),
        *(STUDENT, TASK),
        *(f"distill/{term.name}" for term in distiller.terms),
        *adversary,
        *(BACKWARD, OPTIMIZER),
        *([DISCRIMINATOR] if adversary else []),
    ]


def by_part(
    names: Sequence[str], rounds: Sequence[Mapping[str, float]], whole: Sequence[float]
) -> dict[str, list[float]]:
    """Seconds of each named part in each round, and of what remains of the whole step."""
    parts = {name: [seconds.get(name, 0.0) for seconds in rounds] for name in names}
    named = total(*parts.values())
    return {**parts, OTHER: [a - b for a, b in zip(whole, named, strict=True)]}


def time_loop(
    step: Step,
    batches: Iterator[Batch],
    *,
    steps: int = 20,
    warmup: int = 2,
    ahead: int = 0,
    accumulate: int = 1,
    channels_last: bool = False,
    progress: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Steps back to back as in a run: seconds of waiting for data, of moving it to the device, and of the step.

    Args:
        ahead: batches that loaders have ready before the first step; they are thrown away, since a run soon lives on
            what is loaded while it steps.
    """
    device = step.device
    for _ in range(ahead):
        next(batches)
    seconds: dict[str, list[float]] = {"wait": [], "move": [], "step": []}
    for number in range(warmup + steps):
        clock = Clock(device)
        group = []
        for _ in range(accumulate):
            with clock.part("wait"):
                batch = next(batches)
            with clock.part("move"):
                group.append(batch.to(device, channels_last))
        with clock.part("step"):
            step(group, LATE)
        if number >= warmup:
            for name, values in seconds.items():
                values.append(clock.seconds[name])
        if progress is not None:
            progress()
    return seconds


def in_blocks(values: Sequence[float], size: int) -> list[float]:
    """Means of `size` neighbours each: loaders give batches in bursts, of which a median would see one side only."""
    size = min(size, len(values))
    count = len(values) // size
    return [sum(values[i * size : (i + 1) * size]) / size for i in range(count)]
