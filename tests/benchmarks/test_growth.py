"""The script of growth runs, and what it counts: memory is linear in pixels."""

import pytest
import torch

from benchmarks import growth
from benchmarks.growth import SUBJECTS, Size, extra_bytes, verdict

CPU = torch.device("cpu")


def test_growth(dry):
    subjects = ("cross-entropy", "pair-wise, sigmoid", "step with Pi + Pa")
    record, printed = dry(growth, "--subject", *subjects)
    found = record["subjects"]
    assert set(found["cross-entropy"]) == {"pixels", "classes", "batch"}
    pixels = found["cross-entropy"]["pixels"]
    assert pixels["sizes"] == [64**2, 128**2]
    assert pixels["time_exponent"]["count"] == 2
    assert "every pair" in found["pair-wise, sigmoid"]["nodes"]["why"]
    assert "| step with Pi + Pa | pixels | 4096 – 16384 |" in printed


def peak(call):
    # PyTorch's profiler now and then misses an event.
    return max(extra_bytes(call, CPU) for _ in range(3))


@pytest.mark.parametrize(
    "name",
    ["cross-entropy", "OHEM", "pixel-wise", "virtual normal", "evaluation", "confusion matrix", "step with Pi + Pa"],
)  # fmt: skip
def test_memory_grows_no_faster_than_pixels(name):
    make = growth.small(SUBJECTS[name]).make
    # Evaluation interpolates some rows at a time: below a million pixels that is all of them.
    sides = (512, 1024) if name == "evaluation" else (128, 256)
    less, more = (peak(make(Size(side=side, classes=8), CPU)) for side in sides)
    assert 0 < more <= 1.05 * 4 * less


@pytest.mark.parametrize(
    "name", ["pair-wise", "pair-wise, window of 9", "pair-wise, sigmoid", "feature mimic"]
)
def test_memory_grows_no_faster_than_nodes(name):
    less, more = (peak(SUBJECTS[name].make(Size(nodes=n), CPU)) for n in (2048, 4096))
    assert 0 < more <= 1.05 * 2 * less


def test_all_that_the_table_has_can_be_built():
    for subject in SUBJECTS.values():
        assert set(subject.quadratic) <= set(subject.axes)
        assert not subject.quadratic_memory or subject.quadratic


@pytest.mark.parametrize(
    ("time", "memory", "why", "expected"),
    [
        (1.0, 1.0, None, "linear"),
        (0.5, 0.1, None, "linear"),
        (1.0, 1.0, "it may be", "linear"),
        (2.0, 1.0, "it is", "quadratic by nature"),
        (2.0, 1.0, None, "MISSED: time more than linear"),
        (1.0, 1.2, None, "MISSED: memory more than linear"),
        (2.0, 2.0, "only its time", "MISSED: memory more than linear"),
    ],
)
def test_a_miss_is_said(time, memory, why, expected):
    found = {
        "time_exponent": {"interval": [1.0, 1.0]},
        "time_exponent_of_last_two": {"interval": [time, time]},
        "memory_exponent_of_last_two": memory,
    }
    assert verdict(found, why, quadratic_memory=False) == expected


def test_quadratic_memory_may_be_nature_too():
    time = {"interval": [2, 2]}
    found = {"time_exponent": time, "time_exponent_of_last_two": time, "memory_exponent_of_last_two": 2}  # fmt: skip
    assert verdict(found, "attention", quadratic_memory=True) == "quadratic by nature"
