"""Bad input ends before training: one message that names it, status 2, and no run folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from densekd.cli.main import main
from densekd.data import CamVid, sample_check
from densekd.engine.folder import RunFolder
from densekd.models.espnet import espnet_c
from densekd.models.weights import save_weights
from tests.cli.helpers import SIZE, one_message, torchrun, truncate, write_camvid, write_recipe
from tests.cli.helpers import densekd as command


@pytest.fixture
def recipe(tmp_path):
    """ESPNet-C from ESPNet on noise in CamVid's layout: what a user's first recipe looks like."""
    write_camvid(tmp_path / "data")
    return {
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "teacher": {
            "name": "espnet",
            "options": {"p": 1, "q": 1},
            "allow_untrained": True,
        },
        "data": {
            "dataset": "camvid",
            "root": str(tmp_path / "data"),
            "batch_size": 2,
            "workers": 0,
            "crop": list(SIZE),
        },
        "distill": {"pixel_wise": {"weight": 1}},
        "train": {"steps": 2, "log_every": 1},
    }


@pytest.fixture
def fails(tmp_path, recipe, capsys):
    """Run a command on the recipe and return the one message that it must end with."""

    def go(*extra: object, verb: str = "distill") -> str:
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        assert main([verb, str(path), "--out", str(tmp_path / "runs"), *map(str, extra)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("densekd: error: ")
        assert said.err.count("densekd: error:") == 1
        assert not (tmp_path / "runs").exists()
        return said.err

    return go


def test_a_good_recipe_runs(tmp_path, recipe, capsys):
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert main(["distill", str(path), "--out", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "6 training and 2 validation images" in out
    assert "images/s" in out
    assert "val mIoU" in out


def test_missing_folder(fails, tmp_path):
    message = fails("--data.root", tmp_path / "nowhere")
    assert "nowhere does not exist" in message
    assert "CamVid" in message


def test_empty_folder(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    message = fails("--data.root", tmp_path / "empty")
    assert "empty has no train.txt" in message
    assert "data.root" in message


def test_an_image_that_is_not_there(fails, tmp_path):
    (tmp_path / "data/train/3.png").unlink()
    message = fails()
    assert "1 of 6 images do not exist" in message
    assert "train/3.png" in message


def test_an_image_without_its_label(fails, tmp_path):
    (tmp_path / "data/trainannot/3.png").unlink()
    message = fails()
    assert "1 of 6 images have no label" in message
    assert "train/3.png (expected " in message
    assert "data.allow_unlabelled" in message


def test_more_labels_than_images(fails):
    message = fails("--data.train_options", "{labelled: 99}")
    assert "data.train_options.labelled is 99; expected 1 to 6" in message


def test_a_label_value_outside_the_classes(fails, tmp_path):
    label = tmp_path / "data/trainannot/3.png"
    Image.fromarray(np.full(SIZE, 99, np.uint8)).save(label)
    message = fails()
    assert "trainannot/3.png holds label values outside the classes: 99" in message
    assert "0-11, 255" in message


def test_sizes_that_differ(fails, tmp_path):
    label = tmp_path / "data/valannot/1.png"
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(label)
    message = fails()
    assert "valannot/1.png is 20x10" in message
    assert "48x32" in message


def test_a_truncated_image_in_the_sample(fails, tmp_path):
    truncate(tmp_path / "data/train/0.png")
    message = fails()
    assert "train/0.png is truncated or damaged" in message
    assert "data check" in message


def test_a_colour_image_as_label(fails, tmp_path):
    label = tmp_path / "data/trainannot/3.png"
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(label)
    assert "trainannot/3.png is a RGB image with 3 channels" in fails()


def checkpoint(path, network):
    save_weights(network, path, {})
    return path


def test_a_checkpoint_of_another_network(fails, tmp_path):
    file = checkpoint(tmp_path / "other.safetensors", torch.nn.Conv2d(3, 4, 1))
    message = fails("--teacher.weights", file)
    assert "other.safetensors" in message
    assert "another network" in message or "missing" in message


def test_a_checkpoint_of_another_class_count(fails, tmp_path):
    file = checkpoint(tmp_path / "nine.safetensors", espnet_c(num_classes=9, p=1, q=1))
    message = fails("--model.weights", file)
    assert "nine.safetensors" in message
    assert "9 classes" in message
    assert "11" in message


def test_a_checkpoint_that_is_no_checkpoint(fails, tmp_path):
    for name in ("text.pth", "text.safetensors"):
        file = tmp_path / name
        file.write_text("not weights")
        assert name in fails("--teacher.weights", file)


def test_evaluate_says_the_same_of_weights(tmp_path, recipe, capsys):
    file = checkpoint(tmp_path / "nine.safetensors", espnet_c(num_classes=9, p=1, q=1))
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert main(["evaluate", str(path), "--weights", str(file)]) == 2
    message = capsys.readouterr().err
    assert "nine.safetensors" in message
    assert "9 classes" in message


def test_unknown_key(fails, recipe):
    recipe["optim"] = {"lrr": 0.1}
    message = fails()
    assert "optim.lrr: unknown key; did you mean 'lr'?" in message
    assert "recipe.yaml" in message


def test_mistyped_value(fails, recipe):
    recipe["optim"] = {"lr": "fast"}
    message = fails()
    assert "optim.lr" in message
    assert "'fast'" in message


def test_a_backbone_that_does_not_exist(fails):
    message = fails("--model.name", "psp_timm", "--model.options", "{backbone: no_such_backbone}")
    assert "no_such_backbone" in message


def test_an_existing_run_folder(tmp_path, recipe, capsys):
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    words = ["distill", str(path), "--out", str(tmp_path / "runs"), "--name", "r"]
    assert main(words) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/r").rglob("*")}
    capsys.readouterr()
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "runs/r already exists" in message
    assert "--resume" in message
    assert "--name" in message
    # and going on with other settings says which
    assert main([*words, "--resume", "--optim.lr", "0.5"]) == 2
    assert "optim.lr: 0.01 -> 0.5" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/r").rglob("*")}


def test_a_real_process_says_it_without_a_traceback(tmp_path, recipe):
    (tmp_path / "data/trainannot/3.png").unlink()
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    message = one_message(command("distill", path, "--out", tmp_path / "runs"))
    assert "train/3.png" in message
    assert not (tmp_path / "runs").exists()


# --- met later: the sample before training reads 16 files, these sets have more --------------------------------------


def unread(reader) -> str:
    """Truncate an image that the check before training does not read; returns its name."""
    read = []
    plain = reader.read
    reader.read = lambda index: (read.append(index), plain(index))[1]
    sample_check(reader)
    index = next(i for i in range(len(reader)) if i not in read)
    truncate(reader.paths(index)[0])
    return reader.name(index)


@pytest.fixture
def late(tmp_path, recipe):
    """A recipe whose one truncated training image the check before training does not meet."""
    root = write_camvid(tmp_path / "large", train=40)
    recipe["data"]["root"] = str(root)
    recipe["train"]["steps"] = 20  # 2 images a step: every image once
    recipe.update(model={"name": "espnet_c", "options": {"p": 0, "q": 0}}, distill={})
    del recipe["teacher"]
    name = unread(CamVid(root))
    return write_recipe(tmp_path / "recipe.yaml", recipe), name


def test_a_truncated_image_met_later_stops_the_run_and_is_named(tmp_path, late, capsys):
    path, name = late
    assert main(["train", str(path), "--out", str(tmp_path / "runs"), "--name", "r"]) == 2
    message = capsys.readouterr().err
    assert f"{name} is truncated or damaged" in message
    assert message.count("densekd: error:") == 1
    assert not RunFolder(tmp_path / "runs/r").result.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_or_is_skipped_and_counted(tmp_path, late, capsys, workers):
    path, name = late
    words = ["train", str(path), "--out", str(tmp_path / "runs"), "--name", "r"]
    settings = ["--data.on_bad_file", "skip", "--data.workers", str(workers)]
    assert main([*words, *settings]) == 0
    result = json.loads(RunFolder(tmp_path / "runs/r").result.read_text())
    assert list(result["skipped"]) == [name]
    assert "truncated" in result["skipped"][name]
    out = capsys.readouterr().out
    assert "skipped 1 unreadable file" in out
    assert name in out


def test_a_validation_image_that_is_skipped_is_counted_too(tmp_path, recipe, capsys):
    root = write_camvid(tmp_path / "large", train=4, val=40)
    recipe["data"].update(root=str(root), on_bad_file="skip")
    recipe["train"]["steps"] = 1
    bad = unread(CamVid(root, "val"))
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert main(["distill", str(path), "--out", str(tmp_path / "runs"), "--name", "r"]) == 0
    folder = RunFolder(tmp_path / "runs/r")
    assert list(json.loads(folder.result.read_text())["skipped"]) == [bad]
    capsys.readouterr()
    output = tmp_path / "scores.json"
    words = ["evaluate", str(path), "--weights", str(folder.student), "--output", str(output)]
    assert main(words) == 0
    scores = json.loads(output.read_text())
    assert (list(scores["skipped"]), scores["images"]) == ([bad], 39)
    assert f"skipped 1 unreadable files: {bad}" in capsys.readouterr().out


@pytest.mark.slow  # two processes with torch in each
@pytest.mark.dist
def test_the_process_that_meets_a_bad_file_names_it(late):
    path, name = late
    result = torchrun("train", path, "--out", path.parent / "runs", "--device", "cpu")
    assert result.returncode != 0
    assert result.stderr.count("densekd: error:") == 1
    assert f"{name} is truncated or damaged" in result.stderr


def test_data_check_reads_them_all(tmp_path, late, capsys):
    path, name = late
    output = tmp_path / "report.json"
    words = ["data", "check", str(path), "--split", "train"]
    assert main([*words, "--output", str(output)]) == 1
    out = capsys.readouterr().out
    assert "40 (39 labelled, 0 without label, 1 bad)" in out
    assert name in out
    report = json.loads(output.read_text())
    assert [bad[0] for bad in report["train"]["bad"]] == [name]
    assert sum(report["train"]["pixels"]) + report["train"]["ignored"] == 39 * SIZE[0] * SIZE[1]
    # a report is never written over something
    assert main([*words, "--output", str(output)]) == 2
    assert "exists" in capsys.readouterr().err


def test_data_check_of_good_data_ends_with_0(tmp_path, recipe, capsys):
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert main(["data", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert "--- train" in out
    assert "--- val" in out


def test_a_crop_with_only_ignored_pixels_trains(tmp_path, recipe):
    for i in range(5):  # all but one: a set without any label at all is refused
        Image.fromarray(np.full(SIZE, 11, np.uint8)).save(tmp_path / f"data/trainannot/{i}.png")
    recipe["data"]["batch_size"] = 1
    recipe["train"]["steps"] = 6
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert main(["distill", str(path), "--out", str(tmp_path / "runs"), "--name", "r"]) == 0
    losses = [
        json.loads(line) for line in RunFolder(tmp_path / "runs/r").metrics.read_text().splitlines()
    ]
    assert sum(row.get("task/ce") == 0 for row in losses) == 5
    assert all(np.isfinite(row["loss"]) for row in losses if "loss" in row)


def test_a_nan_stops_before_the_optimizer_names_its_term_and_leaves_the_checkpoint(
    tmp_path, recipe, capsys, monkeypatch
):
    from densekd.tasks import Segmentation

    plain, calls = Segmentation.loss, []

    def spoiled(self, output, batch):
        calls.append(1)
        terms = plain(self, output, batch)
        # one call is the dry run before training
        return terms if len(calls) < 5 else {"task/ce": terms["task/ce"] * float("nan")}

    monkeypatch.setattr(Segmentation, "loss", spoiled)
    recipe["train"].update(steps=9, save_every=1)
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert main(["distill", str(path), "--out", str(tmp_path / "runs"), "--name", "r"]) == 1
    message = capsys.readouterr().err
    assert "task/ce is not finite" in message
    assert "Traceback" not in message
    folder = RunFolder(tmp_path / "runs/r")
    state = torch.load(folder.last, weights_only=True)
    assert f"step {state['step']}:" in message
    assert all(v.isfinite().all() for v in state["student"].values() if v.is_floating_point())
