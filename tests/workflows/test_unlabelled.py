"""Runs with a second, unlabelled set: exact order and resume, the share, what is learned from it, and bad settings."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import yaml

from densekd.build.data import build_reader, build_unlabelled, check_unlabelled
from densekd.build.run import assemble
from densekd.config.load import make_config
from densekd.engine.folder import RunFolder
from densekd.engine.launch import Process
from densekd.engine.log import read_metrics
from densekd.engine.trainer import Training
from densekd.errors import DataError, UserError
from densekd.workflows.bench import bench
from densekd.workflows.check import check_splits
from densekd.workflows.run import run
from densekd.workflows.validate import validate
from tests.cli.helpers import torchrun, write_recipe
from tests.data.conftest import make_image
from tests.workflows.test_tasks import DEPTH, DETECTOR, wider

CPU = Process(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def tree(tiny_tree, tmp_path):
    """Batches of 2 labelled scenes and 3 of 5 images in a folder."""
    for i, size in enumerate([(64, 128), (40, 40), (100, 30), (64, 64), (8, 200)]):
        make_image(tmp_path / "images" / f"drive {i % 2}" / f"{i}.png", seed=i, size=size)
    tiny_tree["data"]["unlabelled"] = {"root": str(tmp_path / "images"), "batch_size": 3}
    return tiny_tree


def of_task(tree, task):
    """The same recipe for another task."""
    if task != "segmentation":
        model = DETECTOR if task == "detection" else DEPTH
        tree.update(task=task, model=deepcopy(model), teacher=wider(model))
        tree["data"]["options"]["target"] = "boxes" if task == "detection" else "depth"
    if task == "depth":
        tree["task"] = {"name": "depth", "min_depth": 1, "max_depth": 80}
    return tree


def go(tree, folder, *, distil=True, resume=False):
    config = make_config(tree, "test")
    return run(config, distil=distil, folder=folder, command="test", resume=resume, device="cpu")


def stop_at(monkeypatch, step):
    """Stop as a kill would: between a save and the next step."""
    original = Training.save

    def die(self):
        original(self)
        if self.done == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "save", die)


@pytest.mark.parametrize("task", ["segmentation", "detection", "depth"])
def test_stopped_and_resumed_with_workers_is_the_uninterrupted_run(
    tree, task, tmp_path, monkeypatch, capsys
):
    tree = of_task(tree, task)
    tree["train"].update(steps=3, save_every=1)
    assert go(tree, tmp_path / "whole") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "6 training, 5 unlabelled and 3 validation images; effective batch 5" in said
    assert "((2 labelled + 3 unlabelled) x 1 accumulated x 1 processes)" in said
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    assert all(value == value for row in read_metrics(whole.metrics) for value in row.values())

    stop_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        go(tree, tmp_path / "parts")
    monkeypatch.undo()
    tree["data"]["workers"] = 2
    assert go(tree, tmp_path / "parts", resume=True) == 0
    assert whole.student.read_bytes() == parts.student.read_bytes()


@pytest.mark.parametrize("task", ["segmentation", "detection", "depth"])
def test_the_supervised_loss_is_that_of_the_labelled_images(tree, task):
    both = assemble(make_config(of_task(tree, task), "test"), CPU, distil=True)
    tree["data"]["unlabelled"] = None
    alone = assemble(make_config(tree, "test"), CPU, distil=True)
    student = both.distiller.student.eval()
    values = []
    with torch.no_grad():
        for each in (both, alone):
            batch = each.first_batch()
            assert batch.labelled.tolist() == [True, True] + [False] * (len(batch) - 2)
            values.append(each.task.loss(student(batch.images), batch))
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        assert float(value) == pytest.approx(float(values[1][name]), rel=1e-4), name


def test_the_second_set_changes_what_is_distilled(tree, tmp_path):
    tree["train"]["steps"] = 1
    go(tree, tmp_path / "both")
    tree["data"]["unlabelled"] = None
    go(tree, tmp_path / "alone")
    one, two = (read_metrics(tmp_path / n / "metrics.jsonl")[0] for n in ("both", "alone"))
    assert one["distill/pixel_wise"] != two["distill/pixel_wise"]


def test_training_alone_leaves_it_out(tree, tmp_path):
    tree["train"]["steps"] = 1
    go(tree, tmp_path / "with", distil=False)
    assert yaml.safe_load((tmp_path / "with" / "config.yaml").read_text())["data"]["unlabelled"] is None  # fmt: skip
    tree["data"]["unlabelled"] = None
    go(tree, tmp_path / "without", distil=False)
    files = [RunFolder(tmp_path / name).student.read_bytes() for name in ("with", "without")]
    assert files[0] == files[1]


def test_a_data_set_whose_labels_are_ignored(tree, tmp_path, capsys):
    options = {"height": 64, "width": 128, "length": 4, "target": "depth"}
    tree["data"]["unlabelled"] = {"dataset": "scenes", "split": "val", "options": options}
    tree["data"]["unlabelled"]["scale"] = [0.5, 0.5]
    tree["train"]["steps"] = 1
    assert go(tree, tmp_path / "r") == 0
    assert "6 training, 4 unlabelled and 3" in " ".join(capsys.readouterr().out.split())
    batch = assemble(make_config(tree, "test"), CPU, distil=True).first_batch()
    assert batch.labelled.tolist() == [True] * 2 + [False] * 4
    assert batch.inside[2:].float().mean() == 0.25


def test_a_store_keeps_the_maps_of_both_sets_apart(tree, tmp_path, capsys):
    tree["data"]["augment_epochs"] = 2
    tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store")}
    tree["train"] = {"steps": 6, "log_every": 1}
    assert go(tree, tmp_path / "one") == 0
    assert "11 images × 2 epochs = 22 records" in capsys.readouterr().out
    assert go(tree, tmp_path / "two") == 0
    assert "100 % filled" in capsys.readouterr().out
    one, two = (RunFolder(tmp_path / name).student.read_bytes() for name in ("one", "two"))
    assert one == two
    tree["distill"]["teacher_cache"] = None
    assert go(tree, tmp_path / "live") == 0
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "live")]
    for stored, live in zip(*rows, strict=True):
        if "distill/pixel_wise" in live:  # else the row has scores
            assert stored["distill/pixel_wise"] == pytest.approx(
                live["distill/pixel_wise"], rel=0.05
            )


def test_other_images_make_another_store(tree, tmp_path, capsys):
    tree["data"]["augment_epochs"] = 1
    tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store")}
    tree["train"] = {"steps": 3}
    go(tree, tmp_path / "one")
    make_image(tmp_path / "images" / "drive 0" / "0.png", seed=9, size=(64, 128))
    capsys.readouterr()
    go(tree, tmp_path / "two")
    assert "; 0 % filled" in capsys.readouterr().out


def test_the_first_set_may_come_from_a_cache(tree, tmp_path):
    go(tree, tmp_path / "plain")
    tree["data"]["cache"] = "ram"
    go(tree, tmp_path / "cached")
    files = [RunFolder(tmp_path / name).student.read_bytes() for name in ("plain", "cached")]
    assert files[0] == files[1]


def test_the_folder_may_move(tree, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        go(tree, tmp_path / "r")
    monkeypatch.undo()
    (tmp_path / "images").rename(tmp_path / "moved")
    tree["data"]["unlabelled"]["root"] = str(tmp_path / "moved")
    assert go(tree, tmp_path / "r", resume=True) == 0


def test_wholly_without_labels(tree, tmp_path):
    tree["data"].update(allow_unlabelled=True)
    tree["data"]["train_options"]["labelled"] = 0
    assert go(tree, tmp_path / "r") == 0
    rows = read_metrics(tmp_path / "r" / "metrics.jsonl")
    assert all(row["task/ce"] == 0 for row in rows if "task/ce" in row)
    assert rows[0]["distill/pixel_wise"] > 0
    assert json.loads(RunFolder(tmp_path / "r").result.read_text())["scores"]["miou"] is not None


def test_validation_images_among_them_are_remarked_on(tree, tmp_path):
    for split in ("train", "val"):
        for i in range(2):
            make_image(tmp_path / "set" / split / "images" / f"{i}.png", seed=i)
            make_image(tmp_path / "set" / split / "masks" / f"{i}.png")
    classes = {"classes": ["a", "b"]}
    tree["data"].update(dataset="folder", root=str(tmp_path / "set"), options=classes)
    tree["data"].update(train_options={}, val_options={})
    tree["data"]["unlabelled"] = {"root": str(tmp_path / "set" / "val" / "images")}
    data = make_config(tree, "test").data
    train, val = (build_reader(data, s, training=s == "train") for s in ("train", "val"))
    remarks = check_unlabelled(build_unlabelled(data, train), val)
    assert any("2 of 2 validation images are among its images" in remark for remark in remarks)
    # Of a data set not even the label files are read: these are colour images, which are no labels.
    named = replace(data.unlabelled, dataset="folder", split="val", root=data.root, options=classes)
    images = build_unlabelled(replace(data, unlabelled=named), train)
    assert [images.read(i).target for i in range(len(images))] == [None, None]


def test_check_and_validate_know_it(tree):
    config = make_config(tree, "test")
    reports = check_splits(config, ["train", "val"]).reports
    assert (reports["unlabelled"].samples, reports["unlabelled"].unlabelled) == (5, 5)
    assert "valid" in validate(config)
    tree["data"]["unlabelled"] = {"dataset": "scenes", "options": {"lenght": 3}}
    with pytest.raises(UserError, match=r"data\.unlabelled\.options\.lenght: .*length"):
        validate(make_config(tree, "test"))


@pytest.mark.parametrize("made_up", [False, True])
def test_bench_takes_whole_batches(tree, made_up):
    assert bench(make_config(tree, "test"), steps=1, device="cpu", made_up=made_up)["batch"][0] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": None}, r"data\.unlabelled: needs data\.crop"),
        ({"cache": "device"}, r"data\.cache: device .* data\.unlabelled"),
        ({"unlabelled": {"root": "R", "batch_size": 0}}, r"data\.unlabelled\.batch_size"),
        ({"unlabelled": {"root": "R", "batchsize": 2}}, r"data\.unlabelled\.batchsize"),
    ],
)
def test_settings_that_do_not_fit(tree, settings, message):
    tree["data"].update(settings)
    with pytest.raises(UserError, match=message):
        make_config(tree, "test")


@pytest.mark.parametrize(
    ("unlabelled", "error", "message"),
    [
        ({}, UserError, r"data\.unlabelled\.root: missing; give --data\.unlabelled\.root FOLDER"),
        ({"root": "no/such"}, DataError, r"no/such does not exist.*Check data\.unlabelled\.root"),
        ({"root": "EMPTY"}, DataError, r"holds no images.*Check data\.unlabelled\.root"),
        ({"root": "R", "split": "x"}, UserError, r"data\.unlabelled\.split: a folder of images"),
        ({"root": "R", "options": {"a": 1}}, UserError, r"data\.unlabelled\.options: a folder of"),
        ({"dataset": "scene"}, UserError, r"data\.unlabelled\.dataset: 'scene' is unknown.*scenes"),
        ({"dataset": "camvid"}, UserError, r"data\.unlabelled\.root: missing"),
        ({"dataset": "scenes", "root": "R"}, UserError, r"data\.unlabelled\.root: scenes takes no"),
        ({"dataset": "scenes", "split": "x"}, DataError, "no split of the scenes 'x'"),
    ],
)
def test_bad_second_sets_fail_before_the_folder_is_made(tree, tmp_path, unlabelled, error, message):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "R": str(tmp_path / "images")}
    root = unlabelled.get("root")
    tree["data"]["unlabelled"] = {**unlabelled, "root": places.get(root, root)}
    with pytest.raises(error, match=message):
        go(tree, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_see_a_share_each(tree, tmp_path):
    tree["train"]["steps"] = 2
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    result = torchrun("distill", recipe, "--out", tmp_path, "--name", "run", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    shown = "effective batch 10 ((2 labelled + 3 unlabelled) x 1 accumulated x 2 processes)"
    assert shown in " ".join(result.stdout.split())
