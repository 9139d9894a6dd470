"""The files in examples/ do what docs/own_loop.md and docs/extending.md say."""

from __future__ import annotations

import importlib
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from densekd.cli.main import main as densekd
from densekd.data import SceneSet
from densekd.models import espnet, save_weights

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def load(monkeypatch):
    """Import a file of examples/ by its name, as Python started in that folder does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def side_by_side(tmp_path):
    """Scenes in the layout that examples/my_dataset.py reads: sky is 30, buildings 20, the rest 10 or unknown."""
    numbers = np.zeros(256, np.uint8)
    numbers[:9] = [10, 10, 20, 30, 0, 10, 0, 0, 0]
    for split, length in (("train", 4), ("val", 2)):
        scenes = SceneSet(split, length=length, height=64, width=96)
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(length):
            sample = scenes.read(i)
            Image.fromarray(sample.image).save(tmp_path / "data" / split / f"{i}.png")
            mask = Image.fromarray(numbers[sample.target])
            mask.save(tmp_path / "data" / split / f"{i}_mask.png")
    return tmp_path / "data"


def test_one_loss_falls(capsys):
    runpy.run_path(str(EXAMPLES / "one_loss.py"))
    values = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)


def test_own_loop_learns_from_a_loaded_teacher(load, tmp_path):
    torch.manual_seed(1)
    save_weights(espnet(9, p=2, q=3), tmp_path / "teacher.safetensors")
    student, history = load("own_loop").main(str(tmp_path / "teacher.safetensors"), steps=4)
    assert list(history[0]) == ["ce", "pixel_wise", "pair_wise"]
    assert history[-1]["pixel_wise"] < history[0]["pixel_wise"]
    assert all(p.isfinite().all() for p in student.parameters())


def test_own_loop_with_a_discriminator_trains_both(load):
    distiller, history = load("own_loop_holistic").main(steps=2)
    assert {"task/ce", "distill/pixel_wise", "distill/pair_wise", "distill/holistic",
            "discriminator/adversarial", "discriminator/penalty"} == set(history[0])  # fmt: skip
    assert history[1]["discriminator/penalty"] != history[0]["discriminator/penalty"]
    assert not any(p.requires_grad for p in distiller.teacher.parameters())


def test_depth_losses_reach_the_student(load):
    history = load("depth_losses").main(steps=3)
    assert list(history[0]) == ["silog", "virtual_normal", "pixel_wise"]
    assert history[-1]["silog"] < history[0]["silog"]


def test_terms_of_a_detector_on_every_level(load):
    history = load("detection_terms").main(steps=2)
    assert {"task/classification", "task/box", "task/centerness", "distill/pixel_wise", "distill/pair_wise",
            "distill/mimic"} == set(history[0])  # fmt: skip
    assert all(value > 0 for value in history[0].values())
    assert history[1]["task/classification"] < history[0]["task/classification"]


def test_own_loss_network_and_data_set_in_one_recipe(load, side_by_side, tmp_path, capsys):
    del load  # only the search path
    overrides = [
        "--data.root", str(side_by_side), "--teacher.allow_untrained", "true", "--data.batch_size", "2",
        "--train.steps", "2", "--train.log_every", "1",
    ]  # fmt: skip
    recipe = str(EXAMPLES / "my_recipe.yaml")
    assert densekd(["config", "validate", recipe, "--run-code"]) == 0
    assert "activity: weight 1" in capsys.readouterr().out
    run = ["--out", str(tmp_path), "--name", "run", "--device", "cpu"]
    assert densekd(["distill", recipe, *run, *overrides]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[0]["distill/activity"] > 0
    assert set(rows[-1]["val/iou"]) == {"ground", "building", "sky"}
    # Written by name, so the finished run can be repeated and evaluated like any other.
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["distill"]["activity"]["loss"] == "my_loss.AttentionTransfer"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"distill.activity.power": "-1"}, "distill.activity: power is -1"),
        ({"distill.activity.powr": "1"}, "did you mean 'power'"),
        ({"distill.activity.loss": "my_loss.Nothing"}, "cannot be imported"),
        ({"distill.activity.student": "backbone:lw"}, "no 'lw'"),
        ({"data.root": "no/such"}, "NAME.png"),
    ],
)
def test_mistakes_in_own_parts_are_users_errors(
    load, side_by_side, tmp_path, capsys, change, words
):
    del load
    settings = {"data.root": str(side_by_side), "teacher.allow_untrained": "true", **change}
    overrides = [word for key, value in settings.items() for word in (f"--{key}", value)]
    recipe = str(EXAMPLES / "my_recipe.yaml")
    assert densekd(["distill", recipe, "--out", str(tmp_path), "--name", "run", *overrides]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_own_loss_ignores_masked_pixels_and_scale(load):
    loss = load("my_loss").AttentionTransfer()
    student = torch.rand(2, 8, 6, 7, requires_grad=True)
    teacher = torch.rand(2, 5, 6, 7)
    mask = torch.rand(2, 6, 7) > 0.5
    value = loss(student, teacher, mask=mask)
    value.backward()
    assert (student.grad.abs().sum(1)[~mask] == 0).all()
    torch.testing.assert_close(loss(3 * student, teacher, mask=mask), value)
    assert loss(student, student, mask=mask) == 0
    assert loss(student, teacher, mask=torch.zeros_like(mask)) == 0
