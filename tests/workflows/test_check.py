"""`data check` says all that a run would remark on, and ends as the worst of it."""

from __future__ import annotations

import json

import pytest

from densekd.build.run import open_sets
from densekd.cli.main import main
from densekd.config.load import load_config
from tests.cli.helpers import write_recipe
from tests.data.conftest import make_image, make_labels, truncate


@pytest.fixture
def recipe(tmp_path):
    """A folder set of two drives in each split."""
    for split, seeds in (("train", range(4)), ("val", range(4, 6))):
        for seed in seeds:
            make_image(tmp_path / f"data/{split}/images/d{seed % 2}/{seed}.png", seed)
            make_labels(tmp_path / f"data/{split}/masks/d{seed % 2}/{seed}.png", [0, 1, 255])
    return {
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "data": {
            "dataset": "folder",
            "root": str(tmp_path / "data"),
            "workers": 0,
            "options": {"classes": ["a", "b"]},
        },
    }


@pytest.fixture
def check(tmp_path, recipe, capsys):
    """The exit status, what was printed, and the JSON."""

    def go(*extra):
        path = write_recipe(tmp_path / "recipe.yaml", recipe)
        output = tmp_path / "out.json"
        output.unlink(missing_ok=True)
        status = main(["data", "check", str(path), "--output", str(output), *map(str, extra)])
        said = capsys.readouterr()
        content = json.loads(output.read_text()) if output.exists() else None
        return status, said.out + said.err, content

    return go


def remarks(tmp_path):
    return open_sets(load_config(tmp_path / "recipe.yaml")).remarks


def test_all_is_well(check):
    status, said, content = check()
    assert (status, content["errors"], content["notes"]) == (0, [], [])
    assert content["train"]["samples"] == 4
    assert "error" not in said


def test_a_bad_file_is_an_error(check, tmp_path):
    truncate(tmp_path / "data/val/images/d0/4.png")
    status, _, content = check()
    assert status == 1
    assert [name for name, _ in content["val"]["bad"]] == ["val/images/d0/4.png"]
    assert check("--split", "train")[0] == 0


def test_reasons_name_settings(check, tmp_path):
    make_image(tmp_path / "data/val/masks/d0/4.png")
    _, _, content = check()
    assert "by its option data.options.colours" in content["val"]["bad"][0][1]


def test_what_a_run_remarks_on_is_an_error(check, tmp_path):
    for path in (tmp_path / "data/train/masks").rglob("*.png"):
        make_labels(path, [0, 255])
    status, said, _ = check()
    assert status == 1
    assert "error: train: only the class 'a' occurs in 4 samples" in said
    (remark,) = remarks(tmp_path)
    assert f"error: {remark}" in said.replace("\n", " ")


def test_nothing_to_learn_from_is_an_error(check, tmp_path):
    for path in (tmp_path / "data/train/masks").rglob("*.png"):
        make_labels(path, [255])
    status, _, content = check()
    assert status == 1
    assert "train: all pixels of 4 samples tried are ignored" in content["errors"][0]


def test_validation_on_training_images_is_an_error(check, recipe):
    recipe["data"]["val_split"] = "train"
    recipe["data"]["val_options"] = {"allow_unlabelled": True}
    status, _, content = check()
    assert status == 1
    assert "4 of 4 images of train are training images" in content["errors"][0]
    assert set(content) == {"train", "train (validation)", "errors", "notes"}


def test_validation_images_in_the_second_set_are_a_note(check, recipe, tmp_path):
    recipe["data"]["unlabelled"] = {"root": str(tmp_path / "data/val/images")}
    recipe["data"]["crop"] = [8, 8]
    status, said, content = check()
    assert (status, content["errors"]) == (0, [])
    assert "note: data.unlabelled: 2 of 2 validation images are among its images" in said
    assert content["unlabelled"]["samples"] == 2


def test_held_out_groups_are_a_note(check, recipe):
    recipe["data"].update(val_fraction=0.5, val_seed=1)
    status, _, content = check()
    assert status == 0
    assert content["train"]["samples"] + content["val"]["samples"] == 4
    assert content["notes"][0].startswith("data.val_fraction: images of train: ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"classes": ["a", "b"], "channels": 1}}, "model.in_channels is 3"),
        ({"train_options": {"labelled": 9}}, "data.train_options.labelled is 9; expected 1 to 4"),
        ({"val_options": {"labelled": 9}}, "data.val_options.labelled is 9; expected 1 to 2"),
        ({"options": {"classes": ["a"], "labelled": 9}}, "data.options.labelled is 9"),
        ({"val_options": {"lables": 9}}, "data.val_options.lables: unknown option"),
        ({"val_options": {"classes": ["a", "c"]}}, "classes of train and val differ"),
        ({"options": {}}, "set data.options.classes"),
    ],
)
def test_settings_that_do_not_fit_read_nothing(check, recipe, change, words):
    recipe["data"].update(change)
    status, said, content = check()
    assert (status, content) == (2, None)
    assert words in said


def test_progress_goes_to_stderr(check, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setattr("densekd.workflows.check.Console", _terminal)
    _, said, _ = check()
    assert "4/4" in said


def _terminal(**given):
    from rich.console import Console

    assert given == {"stderr": True}
    return Console(stderr=True, force_terminal=True)
