"""A teacher of other classes: runs from weights of ours and of others, remarks, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densekd.config.load import make_config
from densekd.data import Sample
from densekd.engine.log import read_metrics
from densekd.errors import UserError
from densekd.models.espnet import espnet
from densekd.models.weights import save_weights
from densekd.scenes import CLASSES
from densekd.workflows.run import run
from densekd.workflows.validate import validate
from tests.workflows.test_tasks import DEPTH, DETECTOR, wider

GROUPS = {name: [i] for i, name in enumerate(CLASSES)}


@pytest.fixture
def tree(tiny_tree, tmp_path):
    """The student's 9 classes from a teacher's 13, of which index 12 is unused."""
    torch.manual_seed(0)
    weights = tmp_path / "teacher.safetensors"
    save_weights(espnet(num_classes=13, p=1, q=1), weights, {})
    groups = {**GROUPS, CLASSES[0]: [0, 9, 10], CLASSES[2]: [2, 11]}
    tiny_tree["teacher"] = {
        "name": "espnet",
        "options": {"p": 1, "q": 1},
        "weights": str(weights),
        "classes": groups,
        "num_classes": 13,
    }
    tiny_tree["train"] = {"steps": 2, "log_every": 1}
    return tiny_tree


def go(tree, folder):
    config = make_config(tree, "test")
    return run(config, distil=True, folder=folder, command="test", device="cpu")


def test_a_teacher_of_more_classes_teaches_every_term(tree, tmp_path, capsys):
    tree["distill"]["feature_mimic"] = {"weight": 1}
    assert go(tree, tmp_path / "r") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of the teacher's 13 classes belong to none of the student's (12); they have" in said
    row = read_metrics(tmp_path / "r" / "metrics.jsonl")[0]
    assert all(row[f"distill/{name}"] > 0 for name in ("pixel_wise", "pair_wise", "feature_mimic"))
    assert "valid" in validate(make_config(tree, "test"))


def test_a_store_holds_the_students_classes(tree, tmp_path, capsys):
    tree["data"]["augment_epochs"] = 1
    tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store")}
    tree["train"]["steps"] = 3
    assert go(tree, tmp_path / "one") == 0
    capsys.readouterr()
    assert go(tree, tmp_path / "two") == 0
    assert "100 % filled" in capsys.readouterr().out
    # Other groups are other maps.
    tree["teacher"]["classes"][CLASSES[0]] = [0, 9]
    assert go(tree, tmp_path / "three") == 0
    assert "; 0 % filled" in capsys.readouterr().out


def test_weights_of_a_run_say_how_many_classes_there_are(tree, tmp_path, capsys):
    tree["teacher"].update(classes=None, num_classes=None, weights=None, allow_untrained=True)
    assert go(tree, tmp_path / "teacher") == 0
    student = dict(tree)
    student["teacher"] = {
        "name": "espnet_c",
        "options": {"p": 1, "q": 1},
        "weights": str(tmp_path / "teacher" / "checkpoints" / "student.safetensors"),
        "classes": {"all": list(range(9))[::-1], "nothing": []},
    }
    student["data"] = {
        **tree["data"],
        "dataset": "tests.workflows.test_label_space.TwoClasses",
        "options": {},
        "train_options": {},
        "val_options": {},
    }
    assert go(student, tmp_path / "student") == 0
    assert "all 9 classes of the teacher are used" in capsys.readouterr().out
    student["teacher"]["classes"] = {"all": [0, 9], "nothing": []}
    with pytest.raises(UserError, match=r"teacher\.classes: index 9 is out of range.* 0 to 8"):
        go(student, tmp_path / "wrong")


class TwoClasses:
    """Grey images of two classes."""

    ignore_index = 255
    channels = 3

    def __init__(self, split: str = "train") -> None:
        self.split = split
        self.classes = ["all", "nothing"]
        self.palette = [(0, 0, 0), (255, 255, 255)]

    def __len__(self) -> int:
        return 4

    def name(self, index):
        return f"{self.split} {index}"

    def read(self, index):
        target = np.arange(64 * 128, dtype=np.uint8).reshape(64, 128) % 2
        return Sample(np.full((64, 128, 3), 40 * index, np.uint8), target, self.name(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": {**GROUPS, "raod": [9]}}, r"teacher\.classes: the student has no class 'raod'.*'?road"),
        ({"classes": {CLASSES[0]: [0]}}, rf"teacher\.classes: nothing is said of {CLASSES[1]}, .*\[\]"),
        ({"classes": {**GROUPS, CLASSES[1]: [0]}}, r"teacher\.classes: index 0 stands twice"),
        ({"classes": {**GROUPS, CLASSES[1]: [13]}}, r"teacher\.classes: index 13 is out of range"),
        ({"classes": {name: [] for name in CLASSES}}, r"teacher\.classes: no class has an index"),
        ({"num_classes": None}, r"teacher\.num_classes: missing; .*teacher\.safetensors does not"),
        ({"classes": {**GROUPS, CLASSES[1]: [-1]}}, r"teacher\.classes: index -1 is out of range"),
        ({"classes": None}, r"teacher\.num_classes: needs teacher\.classes"),
    ],
)  # fmt: skip
def test_classes_that_do_not_fit(tree, tmp_path, change, message):
    tree["teacher"].update(change)
    with pytest.raises(UserError, match=message):
        go(tree, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_detector_of_more_classes_teaches(tree, tmp_path):
    tree.update(task="detection", model=DETECTOR, teacher=wider(DETECTOR))
    tree["data"]["options"]["target"] = "boxes"
    groups = {"car": [0, 5], "person": [3], "sign": []}
    tree["teacher"].update(classes=groups, num_classes=7)
    assert go(tree, tmp_path / "r") == 0
    tree["teacher"].update(classes={**groups, "sign": [7]})
    with pytest.raises(UserError, match=r"teacher\.classes: index 7 is out of range.* 0 to 6"):
        go(tree, tmp_path / "wrong")
    tree["teacher"].update(classes=groups, activation="sigmoid")
    with pytest.raises(UserError, match=r"teacher\.activation: sigmoid is for maps of classes"):
        go(tree, tmp_path / "wrong")


def test_depth_has_none(tree, tmp_path):
    tree.update(task="depth", model=DEPTH, teacher={**DEPTH, "allow_untrained": True})
    tree["data"]["options"]["target"] = "depth"
    tree["teacher"]["classes"] = {"car": [0]}
    with pytest.raises(UserError, match=r"teacher\.classes: leave it out with depth"):
        go(tree, tmp_path / "r")
