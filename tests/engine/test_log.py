"""Rows: their speed and their JSON."""

import json
import math

import pytest

from densekd.engine import log as module
from densekd.engine.log import Log, cut_metrics, read_metrics


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    return Clock


@pytest.fixture
def log(clock, tmp_path):
    made = Log(tmp_path / "metrics.jsonl", active=True, total=20)
    yield made
    made.close()


def test_speed_leaves_an_evaluation_between_two_rows_out(clock, log, tmp_path):
    for step in range(1, 11):
        clock.now += 0.5
        log.count(4)
        if step in (4, 5, 10):
            if step in (5, 10):
                log.steps(step, {"loss": 1.0}, 0.1)
            clock.now += 60
            log.scores(step, {"miou": 0.5})
    speeds = [r["images_per_s"] for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r]
    assert speeds == [8.0, 8.0]


def test_eta_counts_all_steps_since_the_last_row(clock, log, capsys):
    for step in range(1, 11):
        clock.now += 2
        log.count(1)
        if step == 9:
            clock.now += 60
            log.scores(step, {"miou": 0.5})
    log.steps(10, {"loss": 1.0}, 0.1)
    assert "eta 0:20" in capsys.readouterr().out


def strict(text):
    """Lines of JSON, which knows no NaN."""

    def refuse(word):
        raise AssertionError(word)

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_what_is_no_number_is_null(log, tmp_path):
    log.steps(1, {"loss": math.inf}, 0.1)
    log.scores(1, {"miou": math.nan, "iou": {"road": 0.5, "sky": math.nan}})
    first, second = strict((tmp_path / "metrics.jsonl").read_text())
    assert first["loss"] is None
    assert second["val/miou"] is None
    assert second["val/iou"] == {"road": 0.5, "sky": None}


def test_a_cut_leaves_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0}\n')
    cut_metrics(path, 1)
    assert strict(path.read_text()) == [{"step": 1, "loss": None}]


def test_a_cut_drops_later_steps_and_scores_of_evaluations_that_are_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 2, "loss": 1.0},
        {"step": 2, "val/miou": 0.1},
        {"step": 4, "loss": 0.5},
        {"step": 4, "val/miou": 0.2},
        {"step": 6, "loss": 0.4},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cut_metrics(path, 4, 2)
    assert read_metrics(path) == rows[:3]
