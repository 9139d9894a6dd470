"""Runs from decoded samples: the same numbers, and nothing is decoded twice."""

import pytest

from densekd.build.data import check_data_settings
from densekd.config.load import make_config
from densekd.config.schema import Data
from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.errors import UserError
from densekd.workflows.cache import _name
from densekd.workflows.run import run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def go(tree, folder, *, resume=False, **data):
    tree = {**tree, "teacher": None, "distill": {}, "data": {**tree["data"], **data}}
    config = make_config(tree, "test")
    return run(config, distil=False, folder=folder, command="test", resume=resume, device="cpu")


def losses(folder):
    return [
        {k: v for k, v in row.items() if "/" in k or k == "loss"}
        for row in read_metrics(RunFolder(folder).metrics)
    ]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_the_same_run(tiny_tree, tmp_path, cache, kind, capsys):
    assert go(tiny_tree, tmp_path / "plain") == 0
    assert go(tiny_tree, tmp_path / "cached", cache=kind) == 0
    assert losses(tmp_path / "plain") == losses(tmp_path / "cached")
    assert "cache: 9 of 9 images of scenes-train-" in capsys.readouterr().out
    assert cache.exists() == (kind == "disk")
    if kind == "disk":
        # The next run, of any seed, decodes nothing.
        assert go({**tiny_tree, "seed": 7}, tmp_path / "next", cache=kind) == 0
        assert "cache:" not in capsys.readouterr().out
        assert len(list(cache.iterdir())) == 2


def test_on_the_device(tiny_tree, tmp_path):
    assert go(tiny_tree, tmp_path / "plain") == 0
    assert go(tiny_tree, tmp_path / "device", cache="device") == 0
    plain, device = (
        [row["loss"] for row in losses(tmp_path / name) if "loss" in row]
        for name in ("plain", "device")
    )
    assert len(plain) == 4
    assert plain == pytest.approx(device, rel=0.02)


def test_a_run_goes_on_with_a_cache_but_not_on_the_device(tiny_tree, tmp_path):
    longer = {**tiny_tree, "train": {**tiny_tree["train"], "steps": 4}}
    assert go(longer, tmp_path / "r") == 0
    RunFolder(tmp_path / "r").result.unlink()
    assert go(longer, tmp_path / "r", resume=True, cache="ram", cache_gb=3) == 0
    RunFolder(tmp_path / "r").result.unlink()
    with pytest.raises(UserError, match=r"data\.cache: None -> 'device'"):
        go(longer, tmp_path / "r", resume=True, cache="device")


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_beyond_its_budget_leaves_nothing_behind(tiny_tree, tmp_path, cache, kind):
    with pytest.raises(UserError, match=r"data\.cache_gb is 0\.0001. Raise it"):
        go(tiny_tree, tmp_path / "r", cache=kind, cache_gb=0.0001)
    assert not (tmp_path / "r").exists()
    assert not cache.exists()


def test_wrong_settings(tiny_tree):
    tree = {**tiny_tree, "data": {**tiny_tree["data"], "cache_gb": 0}}
    with pytest.raises(UserError, match=r"data\.cache_gb: must be above 0"):
        make_config(tree, "test")
    tree = {**tiny_tree, "task": "detection", "data": {**tiny_tree["data"], "cache": "device"}}
    with pytest.raises(UserError, match=r"data\.cache: device knows no boxes"):
        check_data_settings(make_config(tree, "test"))


def test_splits_have_folders_of_their_own():
    splits = ["a/b", "a_b", "lists/" + "ü" * 200 + ".txt", "lists/" + "ü" * 201 + ".txt"]
    names = {_name(Data(dataset="folder"), split, True) for split in splits}
    assert len(names) == 4
    roots = ["here", "./here", "there"]
    assert len({_name(Data(dataset="folder", root=root), "a", True) for root in roots}) == 3
    assert all("/" not in name and len(name.encode()) < 200 for name in names)
