"""What a run takes: time from its parts, memory, batch norms of one image."""

import pytest
import torch
from torch import nn

from densekd.config.load import make_config
from densekd.workflows.doctor.cost import (
    Steps,
    duration,
    memory_finding,
    norm_findings,
    time_finding,
)

CPU = torch.device("cpu")
NETWORK = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def timed(tree, step=1.0, read=0.5, evaluation=0.1):
    return time_finding(make_config(tree, "test"), Steps(step, read, None), evaluation, 20)


def test_the_time_of_a_run(tiny_tree):
    """100 steps of 1.0 + 0.5 s, and evaluations of 20 * 0.1 s after 50 and 100 of them."""
    tiny_tree["train"].update(steps=100, evaluate_every=50)
    finding = timed(tiny_tree)
    assert finding.level == "ok"
    assert finding.numbers["seconds"] == pytest.approx(154)
    assert finding.what.startswith("about 2.57 min: 100 steps of 1.50 s")


def test_loaders_work_beside_the_step(tiny_tree, monkeypatch):
    monkeypatch.setattr("densekd.workflows.doctor.cost.available_cores", lambda: 2)
    tiny_tree["data"]["workers"] = 8
    assert timed(tiny_tree).numbers["seconds_a_step"] == 1.0
    slow = timed(tiny_tree, read=4.0)
    assert slow.numbers["seconds_a_step"] == 2.0
    assert (slow.level, "bottleneck" in slow.advice) == ("note", True)


def test_a_long_run(tiny_tree):
    tiny_tree["train"]["steps"] = 100_000
    finding = timed(tiny_tree)
    assert (finding.level, finding.setting) == ("note", "train.steps")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (100, "100 s"), (300, "5 min"), (9000, "2.5 h"), (200_000, "2.31 days")]
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_memory():
    assert memory_finding(10**9, CPU, free=10**9).level == "ok"
    assert memory_finding(10**9, CPU, free=10**7).level == "warning"
    assert memory_finding(None, CPU).level == "note"


def test_norms_of_one_image(tiny_tree):
    assert norm_findings(make_config(tiny_tree, "test"), NETWORK) == []
    tiny_tree["data"]["batch_size"] = 1
    config = make_config(tiny_tree, "test")
    assert [f.level for f in norm_findings(config, NETWORK)] == ["warning"]
    assert norm_findings(config, nn.Conv2d(3, 4, 1)) == []
