"""A whole run and its continuation, as a tracker of one's own sees them."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

import densekd
from densekd.errors import UserError
from densekd.workflows.run import shown_name
from tests.workflows.test_functions import tree_of

MADE = []


class Own:
    overwrites = False

    def __init__(self, about):
        self.about, self.id, self.rows = about, "seven", []
        MADE.append(self)

    def log(self, step, values):
        self.rows.append((step, values))

    def finish(self, final):
        self.final = final


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    module = ModuleType("my_trackers")
    module.Own = Own
    monkeypatch.setitem(sys.modules, "my_trackers", module)
    MADE.clear()


def test_rows_config_scores_and_the_way_on(tmp_path):
    tree = tree_of("segmentation")
    tree["train"] = {"steps": 2, "log_every": 1, "trackers": ["my_trackers.Own"]}
    densekd.train(tree, name="run", out=tmp_path, device="cpu")
    (own,) = MADE
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert own.final["final/miou"] == result["scores"]["miou"]
    assert own.final["final/iou/road"] == result["scores"]["iou"]["road"]
    assert own.final["final/parameters"] == result["parameters"]
    assert [step for step, _ in own.rows] == [1, 2, 2]
    assert own.about.config == result["config"]
    assert (own.about.name, own.about.id, own.about.start) == ("run", None, 0)

    tree["train"]["steps"] = 3
    densekd.train(tree, name="run", out=tmp_path, device="cpu", resume=True)
    assert (MADE[1].about.id, MADE[1].about.start) == ("seven", 2)
    assert [step for step, _ in MADE[1].rows] == [3, 3]


def test_an_unknown_tracker_is_refused_before_the_folder_is_made(tmp_path):
    tree = tree_of("segmentation")
    tree["train"]["trackers"] = ["comet"]
    with pytest.raises(UserError, match="'comet' is unknown; possible: mlflow, tensorboard"):
        densekd.train(tree, name="run", out=tmp_path, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_part_of_an_ablation_is_named_with_its_variant(tmp_path):
    assert shown_name(tmp_path / "pi_pa" / "seed0") == "pi_pa/seed0"
    assert shown_name(tmp_path / "pi_pa" / "mine") == "mine"
