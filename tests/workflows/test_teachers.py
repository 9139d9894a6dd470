"""Several teachers and changing weights by recipe: runs, resume, store, ablation, scores, and what does not fit."""

from __future__ import annotations

import json
import re

import pytest
import torch

from densekd.cli.main import main
from densekd.config.load import make_config
from densekd.config.tree import apply_overrides
from densekd.engine.log import read_metrics
from densekd.engine.trainer import Training
from densekd.errors import UserError
from densekd.models.espnet import espnet
from densekd.models.weights import save_weights
from densekd.scenes import CLASSES
from densekd.workflows.ablate import ablate
from densekd.workflows.bench import bench
from densekd.workflows.doctor.examine import examine
from densekd.workflows.evaluate import evaluate_teacher
from densekd.workflows.run import run
from densekd.workflows.validate import validate
from tests.cli.helpers import write_recipe


def weights_of(folder, seed, classes=9):
    torch.manual_seed(seed)
    path = folder / f"teacher{seed}.safetensors"
    save_weights(espnet(num_classes=classes, p=1, q=1), path, {})
    return str(path)


@pytest.fixture
def tree(tiny_tree, tmp_path):
    """Two teachers: one of the student's 9 classes, and one of 13."""
    network = {"name": "espnet", "options": {"p": 1, "q": 1}}
    groups = {name: [i] for i, name in enumerate(CLASSES)}
    tiny_tree["teacher"] = None
    tiny_tree["teachers"] = {
        "near": {**network, "weights": weights_of(tmp_path, 0)},
        "far": {
            **network,
            "weights": weights_of(tmp_path, 1, 13),
            "classes": {**groups, CLASSES[0]: [0, 9]},
            "num_classes": 13,
        },
    }
    tiny_tree["distill"] = {
        "pixel_wise": {"weight": 10},
        "pair_wise": {"weight": 10, "teacher_name": "near"},
        "channel_wise": {"weight": 1, "teacher_name": "far"},
    }
    tiny_tree["train"] = {"steps": 4, "log_every": 1, "save_every": 2}
    return tiny_tree


def go(tree, folder, **options):
    config = make_config(tree, "test")
    return run(config, distil=True, folder=folder, command="test", device="cpu", **options)


def losses(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    unequal = ("images_per_s", "memory_gb")
    return [{k: v for k, v in row.items() if k not in unequal} for row in rows]


def test_two_teachers_teach(tree, tmp_path, capsys):
    assert go(tree, tmp_path / "r") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "teacher near's" in said
    assert "teacher far's" in said
    assert "teachers.far.classes: 3 of the teacher's 13 classes belong to none" in said
    row = losses(tmp_path / "r")[0]
    assert all(row[f"distill/{name}"] > 0 for name in tree["distill"])
    lines = validate(make_config(tree, "test")).splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == [
        "model",
        "teachers.near",
        "teachers.far",
    ]
    assert "channel_wise: weight 1.0, student prediction, teacher prediction of far" in lines
    # Without a name it is the mean of both, which is neither of them.
    alone = {}
    for name in ("near", "far"):
        tree["distill"]["pixel_wise"]["teacher_name"] = name
        assert go(tree, tmp_path / name) == 0
        alone[name] = losses(tmp_path / name)[0]["distill/pixel_wise"]
    assert row["distill/pixel_wise"] not in alone.values()
    assert row["distill/pair_wise"] == losses(tmp_path / "far")[0]["distill/pair_wise"]


def test_a_stopped_run_goes_on_to_the_bit(tree, tmp_path):
    tree["distill"]["pixel_wise"]["weight"] = [[0, 0], [4, 8]]
    tree["distill"]["balance"] = {"every": 2, "decay": 0.5}
    assert go(tree, tmp_path / "whole") == 0
    whole = losses(tmp_path / "whole")
    steps = [row for row in whole if "loss" in row]
    factors = [row["weight/channel_wise"] for row in steps]
    assert factors[0] == factors[1] != factors[2] == factors[3]
    assert steps[0]["weight/pixel_wise"] == 0 != steps[1]["weight/pixel_wise"]
    assert steps[2]["loss"] == pytest.approx(
        sum(v for k, v in steps[2].items() if k.startswith(("task/", "distill/"))), rel=1e-5
    )

    class Killed(Exception):
        pass

    def cut_off(self, *args, **options):
        save(self, *args, **options)
        if self.done == 2:
            raise Killed

    save = Training.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "save", cut_off)
        with pytest.raises(Killed):
            go(tree, tmp_path / "cut")
    assert go(tree, tmp_path / "cut", resume=True) == 0
    assert losses(tmp_path / "cut") == whole
    student = "checkpoints/student.safetensors"
    assert (tmp_path / "cut" / student).read_bytes() == (tmp_path / "whole" / student).read_bytes()


def test_a_schedule_is_logged(tree, tmp_path):
    tree["distill"]["pixel_wise"]["weight"] = [[1, 0], [3, 3]]
    assert go(tree, tmp_path / "r") == 0
    rows = [row for row in losses(tmp_path / "r") if "loss" in row]
    assert [row["weight/pixel_wise"] for row in rows] == [0, 0, 1.5, 3]
    assert [row["distill/pixel_wise"] > 0 for row in rows] == [False, False, True, True]
    assert "weight/pair_wise" not in rows[0]
    # It is part of the recipe that the folder keeps, and no free setting of a run that goes on.
    tree["distill"]["pixel_wise"]["weight"] = [[1, 0], [3, 4]]
    with pytest.raises(UserError, match=r"distill\.pixel_wise\.weight"):
        go(tree, tmp_path / "r", resume=True)


def test_a_store_of_two_teachers(tree, tmp_path, capsys):
    tree["data"]["augment_epochs"] = 1
    tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store")}
    tree["train"]["steps"] = 3
    assert go(tree, tmp_path / "one") == 0
    capsys.readouterr()
    assert go(tree, tmp_path / "two") == 0
    assert "100 % filled" in capsys.readouterr().out
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    tree["teachers"]["far"]["weights"] = weights_of(tmp_path, 2, 13)
    assert go(tree, tmp_path / "three") == 0
    assert "; 0 % filled" in capsys.readouterr().out


def test_each_teacher_has_a_score(tree, tmp_path, capsys):
    config = make_config(tree, "test")
    found = evaluate_teacher(config, "val", name="far", device="cpu", quiet=True)
    assert 0 <= found["miou"] <= 1
    assert "3 of the teacher's 13 classes belong to none of the student's" in found["remarks"][0]
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    words = ["evaluate", str(recipe), "--device", "cpu", "--output", str(tmp_path / "s.json")]
    assert main([*words, "--teacher-name", "near"]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["weights"].endswith("teacher0.safetensors")
    assert "mIoU" in capsys.readouterr().out
    for more, message in (
        (["--teacher"], "teachers near, far"),
        (["--teacher-name", "fra"], "'fra' is unknown.*far"),
        (["--teacher-name", "far", "--weights", str(recipe)], "--teacher.weights"),
    ):
        assert main([*words, *more]) == 2
        assert_said(capsys.readouterr().err, message)


def assert_said(text, message):
    assert re.search(message, " ".join(text.split())), text


def test_an_ablation_has_a_row_a_teacher(tree, tmp_path):
    tree["distill"] = {"pixel_wise": {"weight": 1}}
    tree["train"] = {"steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("densekd.workflows.ablate.run_children", lambda children, **how: 0)
        config = make_config(tree, "test")
        status, table = ablate(config, folder=tmp_path / "a", device="cpu")
        assert status == 0
        assert [name in table for name in ("teacher near (espnet)", "teacher far (espnet)")] == [
            True
        ] * 2
        assert ablate(config, folder=tmp_path / "a", device="cpu")[1] == table
        tree["teachers"]["far"]["weights"] = weights_of(tmp_path, 1, 13)
        save_weights(espnet(num_classes=13, p=1, q=1), tree["teachers"]["far"]["weights"], {})
        with pytest.raises(UserError, match="another teacher"):
            ablate(make_config(tree, "test"), folder=tmp_path / "a", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"name": "espnet"}}, "teachers: there is a teacher too"),
        ({"distill.pair_wise.teacher_name": "naer"}, "distill.pair_wise.teacher_name: 'naer'.*near"),
        ({"distill.pair_wise.teacher_name": ""}, "distill.pair_wise: compares a feature.*near, far"),
        ({"teachers.near.weights": None}, "teachers.near.weights: a teacher needs"),
        ({"teachers.far.num_classes": 5}, "teachers.far.classes: index 9 is out of range"),
        ({"teachers.near.in_channels": 1}, "teachers.near.in_channels is 1"),
        ({"teachers.near.nmae": 1}, "teachers.near.nmae: unknown key.*name"),
        ({"distill.balance": {}, "train.amp": "fp16"}, "distill.balance: train.amp is fp16"),
        ({"distill.balance": {}, "train.compile": True}, "distill.balance: train.compile is true"),
        ({"distill.balance.decay": 1}, r"distill.balance.decay: must be in \[0, 1\)"),
        ({"distill.pixel_wise.weight": [[3, 1], [2, 1]]}, "pixel_wise.weight: must be .* steps rise"),
        ({"distill.pixel_wise.weight": "much"}, "pixel_wise.weight: must be 0 or more, or points"),
        ({"distill.pixel_wise.weight": [[0.5, 1]]}, "pixel_wise.weight: must be 0 or more, or points"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tree, tmp_path, change, message):
    apply_overrides(tree, change)
    with pytest.raises(UserError, match=message):
        go(tree, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_bench_takes_one(tree):
    with pytest.raises(UserError, match="teachers: bench"):
        bench(make_config(tree, "test"), device="cpu")


def test_one_teacher_has_no_name(tiny_tree, tmp_path):
    tiny_tree["distill"]["pixel_wise"]["teacher_name"] = "big"
    with pytest.raises(UserError, match="there is no section teachers"):
        make_config(tiny_tree, "test")


def test_the_doctor_looks_at_each_teacher_and_at_their_store(tree, tmp_path):
    tree["data"]["augment_epochs"] = 2
    tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store")}
    tree["distill"]["pixel_wise"]["weight"] = [[0, 0], [4, 8]]
    tree["distill"]["pair_wise"]["weight"] = [[0, 8], [4, 0]]
    findings = examine(make_config(tree, "test"), device="cpu", images=2, out=tmp_path)
    said = {f.setting: f.what for f in findings}
    for name in ("near", "far"):
        assert said[f"teachers.{name}.weights"].startswith(f"teacher {name} on 2 validation images")
        assert f"teachers.{name}.input" in said
    assert "13 classes" not in str([f.what for f in findings if f.level == "warning"])
    assert "teachers.far.classes" in said
    assert "times the task's" in said["distill.pixel_wise.weight"]  # as its schedule ends
    assert not any("weight is 0" in f.what for f in findings)
    assert any("the teacher's store is at" in f.what for f in findings)
