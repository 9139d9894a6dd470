"""A step's parts: they are all there, they add up, and the step is as it was afterwards."""

import itertools

import pytest
import torch

from densekd.distill.distiller import Distiller
from densekd.engine.step import Step
from densekd.profiling import step_time
from densekd.profiling.step_time import (
    Clock,
    by_part,
    floor_of,
    in_blocks,
    part_names,
    time_loop,
    time_step,
    watched,
)
from tests.distill.helpers import make_batch, make_distiller

CPU = torch.device("cpu")
NAMES = [
    "teacher", "student forward", "supervised loss", "distill/pixel_wise", "distill/pair_wise", "distill/holistic",
    "backward", "optimizer", "discriminator",
]  # fmt: skip


def make_step(distiller: Distiller, **options) -> Step:
    adversary = distiller.adversary
    return Step(
        distiller,
        torch.optim.SGD(distiller.student.parameters(), lr=0.0),
        discriminator_optimizer=None
        if adversary is None
        else torch.optim.Adam(adversary.discriminator.parameters(), lr=0.0),
        **options,
    )


@pytest.fixture
def step() -> Step:
    return make_step(make_distiller())


class Time:
    """A clock that a test turns."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(step_time.time, "perf_counter", lambda: self.now)

    def slow(self, owner, name, monkeypatch) -> None:
        """Each call of ``owner.name`` takes a second."""
        call = getattr(owner, name)

        def slower(*args, **options):
            self.now += 1.0
            return call(*args, **options)

        monkeypatch.setattr(owner, name, slower, raising=False)


def test_a_part_within_another_counts_once(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 6.0, 7.0, 10.0])
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: next(now))
    clock = Clock(CPU)
    with clock.part("a"):
        with clock.part("b"):
            pass
        with clock.part("b"):
            pass
    assert clock.seconds == {"a": 1.0 + 2.0 + 3.0, "b": 3.0 + 1.0}


def test_every_part_is_seen_and_they_add_up(step, monkeypatch):
    assert part_names(step) == NAMES
    reads = itertools.count()
    monkeypatch.setattr(step_time.time, "perf_counter", lambda: float(next(reads)))
    clock = Clock(CPU)
    with clock.part("other"), watched(step, clock):
        step([make_batch(2, (64, 64))], 0)
    assert set(clock.seconds) == {*NAMES, "other"}
    assert all(value > 0 for value in clock.seconds.values())
    # From the first reading to the last.
    assert sum(clock.seconds.values()) == next(reads) - 1


def places(step) -> dict:
    distiller = step.distiller
    return {
        "teacher": (distiller.teacher, "forward"),
        "student forward": (distiller.student, "forward"),
        "supervised loss": (distiller.task, "loss"),
        "distill/pair_wise": (distiller.terms[1].loss, "forward"),
        "distill/holistic": (distiller.adversary.discriminator, "forward"),
        "backward": (step.scaler, "unscale_"),
        "optimizer": (step.optimizer, "step"),
        "discriminator": (distiller.adversary.network, "forward"),
        "other": (distiller.task, "mask"),
    }


@pytest.mark.parametrize("name", [n for n in [*NAMES, "other"] if n != "distill/pixel_wise"])
def test_each_part_is_what_its_name_says(step, monkeypatch, name):
    """What is made slow shows in its own row and in no other."""
    Time(monkeypatch).slow(*places(step)[name], monkeypatch)
    clock = Clock(CPU)
    with watched(step, clock):
        step([make_batch(2, (64, 64))], 0)
    assert {part for part, seconds in clock.seconds.items() if seconds} == {name}


def test_watching_changes_neither_numbers_nor_the_step(step):
    batch = make_batch(2, (64, 64))
    before = dict(vars(step))
    inside = dict(vars(step.distiller))
    torch.manual_seed(0)
    with watched(step, Clock(CPU)):
        seen = step([batch], 0)
    other = make_step(make_distiller())
    torch.manual_seed(0)
    assert seen == other([batch], 0)
    assert vars(step) == before
    assert vars(step.distiller) == inside
    assert "forward" not in vars(step.distiller.adversary.discriminator)
    assert "loss" not in vars(step.distiller.task)


def test_a_step_that_fails_is_put_back(step):
    with pytest.raises(AttributeError), watched(step, Clock(CPU)):
        step([None], 0)
    assert isinstance(vars(step.distiller)["terms"], list)
    assert "_apply" not in vars(step)


@pytest.mark.parametrize(("holistic", "floor"), [(True, 3), (False, 2)])
def test_a_distillation_step(holistic, floor):
    distiller = make_distiller(holistic=holistic)
    step = make_step(distiller, clip=1.0)
    alone = make_step(Distiller(distiller.student, distiller.task))
    calls = []
    found = time_step(
        step, [make_batch(2, (64, 64))] * 2, alone=alone, rounds=2, warmup=1, progress=lambda: calls.append(1)
    )  # fmt: skip
    assert list(found["parts"]) == [*part_names(step), "other"]
    assert list(found["floor"]) == ["teacher", "student", "discriminator"][:floor]
    assert found["ratio"]["count"] == 2
    assert len(calls) == 3 * (2 + floor)
    raw = found["raw_seconds"]
    assert all(len(values) == 2 for values in raw.values())
    below = [sum(raw[f"floor {name}"][i] for name in found["floor"]) for i in range(2)]
    assert found["ratio"]["median"] == pytest.approx(
        sum(a / b for a, b in zip(raw["step"], below, strict=True)) / 2
    )


def test_a_student_alone_has_no_ratio():
    distiller = make_distiller()
    step = make_step(Distiller(distiller.student, distiller.task))
    found = time_step(step, [make_batch(2, (64, 64))], rounds=2, warmup=0)
    assert found["ratio"] is None
    assert found["floor"] == {}
    assert list(found["parts"]) == ["student forward", "supervised loss", "backward", "optimizer", "other"]  # fmt: skip


def test_the_floor_leaves_no_gradient_that_a_step_would_add_to(step):
    batch = make_batch(2, (64, 64))
    torch.manual_seed(0)
    expected = make_step(make_distiller())([batch], 0)
    alone = make_step(Distiller(step.distiller.student, step.distiller.task))
    floor_of(step, alone, [batch])["discriminator"]()
    # Batch statistics and the power iteration have moved; the size of the gradient has not doubled.
    torch.manual_seed(0)
    assert step([batch], 0)["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.3)


def test_what_no_part_explains_is_a_row_of_its_own():
    found = by_part(["a", "b"], [{"a": 1.0, "b": 2.0, "other": 9.0}, {"a": 1.0}], [4.0, 0.5])
    assert found == {"a": [1.0, 1.0], "b": [2.0, 0.0], "other": [1.0, -0.5]}


def test_the_loop_waits_for_data(step, monkeypatch):
    clock = Time(monkeypatch)
    taken = itertools.count()

    def slow():
        while True:
            next(taken)
            clock.now += 1.0
            yield make_batch(2, (32, 32))

    clock.slow(step, "_apply", monkeypatch)
    seconds = time_loop(step, slow(), steps=3, warmup=1, ahead=2, accumulate=2)
    assert next(taken) == 2 + 4 * 2
    assert seconds == {"wait": [2.0] * 3, "move": [0.0] * 3, "step": [1.0] * 3}


def test_bursts_of_a_loader_are_averaged():
    # Two workers give two batches at once: half of all steps wait 1 s, and a median would say 0 or 1.
    assert in_blocks([1.0, 0.0, 1.0, 0.0, 1.0], 2) == [0.5, 0.5]
    assert in_blocks([1.0, 2.0], 8) == [1.5]
