"""Medians, intervals, ratios."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densekd.profiling import measure


def test_spread_and_its_interval():
    found = measure.spread([float(v) for v in range(1, 21)])
    assert found["median"] == 10.5
    assert found["interval"] == [6.0, 15.0]  # the textbook's ranks for n = 20
    assert measure.spread([3.0]) == {
        "median": 3.0, "quartiles": [3.0, 3.0], "interval": [3.0, 3.0], "count": 1
    }  # fmt: skip
    assert measure.spread([2.0, 1.0, 4.0])["interval"] == [1.0, 4.0]


@pytest.mark.parametrize("count", [6, 11, 20])
def test_the_interval_holds_the_median_as_often_as_it_says(count):
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        low, high = measure.spread([draw.gauss(0, 1) for _ in range(count)])["interval"]
        hits += low <= 0 <= high
    assert hits / 2000 > 0.94


def test_rounds_are_interleaved_and_turn_round():
    calls = []
    arms = {name: (lambda name=name: calls.append(name) or 1.0) for name in "ab"}
    seconds = measure.interleave(arms, pairs=3, warmup=1)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}
    with pytest.raises(ValueError, match="pairs"):
        measure.interleave(arms, pairs=0)


def test_ratios_are_taken_round_by_round():
    # The machine slows threefold in the second round: the ratio does not see it.
    assert measure.ratio([2.0, 6.0], measure.total([0.5, 1.5], [0.5, 1.5]))["interval"] == [
        2.0,
        2.0,
    ]


def test_timing():
    assert measure.timed(lambda: sum(range(10_000)), torch.device("cpu")) > 0


def peaks():
    device = torch.device("cpu")
    small = measure.peak_memory(lambda: None, device)
    large = measure.peak_memory(lambda: torch.ones(2**26).sum(), device)  # 256 MiB
    return small, large


def test_memory_of_the_process():
    # In a fresh one: where other tests have left freed memory, a call takes that.
    code = "from tests.profiling.test_measure import peaks; print(*peaks())"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small, large = done.stdout.split()
    if "None" not in (small, large):
        assert int(large) - int(small) > 200 * 2**20
