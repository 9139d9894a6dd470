"""Ordinary use that once ended in a crash."""

import json

import pytest
import yaml

from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.errors import UserError
from densekd.workflows import run as workflow
from tests.reliability.runs import go, small_tree


def test_a_store_in_int8_and_then_top_k_in_one_folder(tmp_path):
    tree = small_tree(steps=3)
    tree["data"]["augment_epochs"] = 1
    tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "allow_untrained": True}
    tree["distill"] = {"pixel_wise": {"weight": 1}, "pair_wise": {"weight": 1}}
    for storage in ("int8", "top_k", "fp16", "int8"):
        tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store"), "storage": storage}
        assert go(tree, tmp_path / f"{len(list(tmp_path.iterdir()))}", distil=True) == 0


def test_no_result_is_lost_for_a_by_product(tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        raise RuntimeError("no such size")

    monkeypatch.setattr(workflow, "count_macs", fails)
    assert go(small_tree(steps=1), tmp_path / "r") == 0
    result = json.loads(RunFolder(tmp_path / "r").result.read_text())
    assert result["macs"] is None
    assert "MACs could not be counted (RuntimeError: no such size)" in capsys.readouterr().out


def test_a_crop_of_8_by_8_ends_with_its_result(tmp_path):
    tree = small_tree(steps=1)
    tree["data"]["crop"] = [8, 8]
    assert go(tree, tmp_path / "r") == 0
    assert go(tree, tmp_path / "r", resume=True) == 0
    assert RunFolder(tmp_path / "r").result.exists()


def test_a_norm_of_one_value_is_met_before_the_folder_is_made(tmp_path):
    tree = small_tree(steps=1)
    tree["data"] |= {"batch_size": 1, "crop": [8, 8]}
    with pytest.raises(UserError, match=r"batches of 1 at 8x8.*data\.batch_size or data\.crop"):
        go(tree, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_more_steps_are_allowed_and_said(tmp_path, capsys):
    tree = small_tree(steps=2)
    assert go(tree, tmp_path / "r") == 0
    tree["train"]["steps"] = 4
    assert go(tree, tmp_path / "r", resume=True) == 0
    said = capsys.readouterr().out
    assert "train.steps was 2 and is 4" in said
    assert "resumed at step 2" in said
    folder = RunFolder(tmp_path / "r")
    assert json.loads(folder.result.read_text())["step"] == 4
    assert [row["step"] for row in read_metrics(folder.metrics)] == [1, 2, 2, 3, 4, 4]
    tree["train"]["steps"] = 3
    with pytest.raises(UserError, match=r"train\.steps: 4 -> 3"):
        go(tree, tmp_path / "r", resume=True)


def test_a_run_of_a_version_with_fewer_settings_goes_on(tmp_path):
    tree = small_tree(steps=1)
    assert go(tree, tmp_path / "r") == 0
    file = RunFolder(tmp_path / "r").config
    settings = yaml.safe_load(file.read_text())
    del settings["teachers"], settings["data"]["val_seed"], settings["model"]["prediction"]
    file.write_text(yaml.safe_dump(settings))
    assert go(tree, tmp_path / "r", resume=True) == 0
    tree["data"]["val_seed"] = 1
    with pytest.raises(UserError, match=r"data\.val_seed: 0 -> 1"):
        go(tree, tmp_path / "r", resume=True)
