"""Levers of the step: what is measured, kept, remembered, taken by a run, and left alone."""

import json
from copy import deepcopy
from functools import partial

import pytest
import torch

from densekd.cli.main import main
from densekd.config.load import make_config
from densekd.config.names import STEP_FORMS
from densekd.config.tree import flatten, parse_yaml
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.workflows import tune as module
from densekd.workflows.tune_memory import memory_of, remembered
from tests.cli.helpers import write_recipe
from tests.reliability import runs


@pytest.fixture
def tree(tiny_tree, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKD_CACHE", str(tmp_path / "cache"))
    # An export takes seconds; tests/workflows/test_teacher_runtime.py tries the runtimes.
    monkeypatch.setattr(module, "installed", lambda runtime: False)
    tree = deepcopy(tiny_tree)
    del tree["distill"]["holistic"]
    tree["train"]["steps"] = 2
    return tree


@pytest.fixture
def half_the_time(monkeypatch):
    """A clock by which every lever takes half of the time of what it is compared with."""

    def interleave(arms, *, pairs, warmup):
        return {name: [1.0 if name == "base" else 0.5] * pairs for name in arms}

    monkeypatch.setattr(module, "interleave", interleave)


def tuned_settings(tree, **options):
    return module.tune(make_config(tree, "test"), rounds=3, device="cpu", **options)


go = partial(runs.go, distil=True)


def settings(folder):
    return flatten(parse_yaml(RunFolder(folder).config.read_text(), "config.yaml"))


def test_every_lever_of_this_recipe_is_timed_and_compared(tree):
    found = tuned_settings(tree)
    tried = [name for lever in found["levers"] for name in lever["changes"]]
    assert {"teacher.channels_last", "train.channels_last", "teacher.batch_size"} <= set(tried)
    assert not {"teacher.compile", "train.compile"} & set(tried), "only on request"
    for lever in found["levers"]:
        if lever["changes"].keys() & {"train.amp", "teacher.precision"}:
            continue
        assert lever["ratio"]["count"] >= 3
        assert 0 <= lever["loss_error"] < 1e-4
        assert 0 <= lever["gradient_error"] < 1e-3, "float rounding and no more"
    assert set(found["settings"]) <= set(STEP_FORMS)
    assert json.loads(memory_of(make_config(tree, "t"), torch.device("cpu")).read_text())


def test_levers_are_step_forms():
    assert {name for lever in module.LEVERS for name in lever.changes} == set(STEP_FORMS)


@pytest.mark.usefixtures("half_the_time")
def test_a_run_takes_what_was_remembered_and_keeps_it_when_it_goes_on(tree, tmp_path, capsys):
    kept = tuned_settings(tree)["settings"]
    assert kept["teacher.channels_last"] is True
    tree["train"]["auto"] = True
    assert go(tree, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "train.auto (remembered)" in said
    assert "teacher.channels_last true" in said
    began_with = settings(tmp_path / "run")
    assert {k: began_with[k] for k in kept} == kept
    # Another machine, whose note says otherwise, goes on as the run began.
    for note in (tmp_path / "cache" / "tune").iterdir():
        note.write_text(json.dumps({"settings": {}, "ratio": {"median": 1, "interval": [1, 1]}}))
    tree["train"]["steps"] = 3
    assert go(tree, tmp_path / "run", resume=True) == 0
    assert {k: settings(tmp_path / "run")[k] for k in kept} == kept
    tree["train"].update(amp="bf16", steps=4)
    with pytest.raises(UserError, match=r"train\.amp: 'none' -> 'bf16'"):
        go(tree, tmp_path / "run", resume=True)


def test_what_rounds_to_int8_is_not_compiled(tree):
    tree["model"]["int8"] = tree["teacher"]["int8"] = True
    config = make_config(tree, "test")
    compiled = [lever for lever in module.LEVERS if lever.compiles]
    assert compiled
    assert not any(lever.applies(config, torch.device("cpu")) for lever in compiled)
    tree["teacher"]["compile"] = True
    with pytest.raises(UserError, match=r"teacher\.compile: torch does not compile"):
        make_config(tree, "test")


@pytest.mark.usefixtures("half_the_time")
def test_a_lever_that_changes_the_function_is_refused(tree, monkeypatch):
    other = module.Lever({"distill.pixel_wise.weight": 20}, lambda config, device: True)
    monkeypatch.setattr(module, "LEVERS", (other,))
    found = tuned_settings(tree)
    assert found["settings"] == {}
    assert "changes losses or gradients" in found["levers"][0]["why"]


def test_a_run_with_nothing_to_try_measures_nothing(tree, tmp_path, monkeypatch, capsys):
    tree["train"].update(auto=True, channels_last=True)
    tree["data"]["batch_size"] = 1
    monkeypatch.setattr(module, "_try_levers", None)
    assert go(tree, tmp_path / "run") == 0
    assert "has every form of the step already" in capsys.readouterr().out


@pytest.mark.usefixtures("half_the_time")
def test_a_lever_that_does_not_run_is_left_out(tree, monkeypatch):
    other = module.Lever({"teacher.options.nonsense": 1}, lambda config, device: True)
    monkeypatch.setattr(module, "LEVERS", (other, *module.LEVERS[:1]))
    found = tuned_settings(tree)
    assert found["levers"][0]["why"].startswith("does not run")
    assert found["settings"] == {"teacher.channels_last": True}


def test_the_last_word_have_all_levers_together(tree, monkeypatch):
    ratios = iter([0.5, 2.0])  # the lever by itself; the kept ones against the recipe as it was

    def interleave(arms, *, pairs, warmup):
        lever = next(ratios)
        return {name: [1.0 if name == "base" else lever] * pairs for name in arms}

    monkeypatch.setattr(module, "interleave", interleave)
    monkeypatch.setattr(module, "LEVERS", module.LEVERS[:1])
    found = tuned_settings(tree)
    assert found["settings"] == {}
    assert found["levers"][0]["why"] == "together: saves nothing here"
    assert not found["levers"][0]["kept"]


def test_measuring_changes_nothing_of_the_run(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH", 0.0)  # nothing is ever kept
    assert go(tree, tmp_path / "plain") == 0
    tree["train"]["auto"] = True
    assert go(tree, tmp_path / "auto") == 0
    a, b = (RunFolder(tmp_path / name).student.read_bytes() for name in ("plain", "auto"))
    without = partial(bytes.replace)
    assert len(a) == len(b)
    assert without(a, b"plain", b"auto") == without(b, b"plain", b"auto")


@pytest.mark.usefixtures("half_the_time")
def test_a_damaged_note_costs_a_measurement_and_not_a_run(tree):
    tuned_settings(tree)
    config, device = make_config(tree, "t"), torch.device("cpu")
    for text in ("", "[]", "{}", '{"settings": 3}', '{"settings": {}, "ratio": {}}'):
        memory_of(config, device).write_text(text)
        assert remembered(config, device) is None


def test_a_stored_teacher_leaves_the_students_levers(tree, tmp_path):
    tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store"), "storage": "fp16"}
    tree["data"]["augment_epochs"] = 1
    found = tuned_settings(tree)
    assert [list(lever["changes"]) for lever in found["levers"]][:1] == [["train.channels_last"]]
    assert not (tmp_path / "store").exists()


def test_the_command_prints_settings_and_writes_numbers(tree, tmp_path, capsys):
    recipe, output = write_recipe(tmp_path / "recipe.yaml", tree), tmp_path / "tune.json"
    words = [
        "tune",
        str(recipe),
        "--rounds",
        "3",
        "--made-up",
        "--device",
        "cpu",
        "--output",
        str(output),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "teacher.channels_last true" in said
    assert json.loads(output.read_text())["made_up"] is True
    assert main(words) == 2, "the file exists"
    assert main(["tune", str(recipe), "--rounds", "1"]) == 2
    assert main(["tune", str(recipe), "--tolerance", "7"]) == 2


def test_several_teachers_are_refused(tree):
    teacher = tree.pop("teacher")
    tree["teachers"] = {"a": teacher, "b": teacher}
    with pytest.raises(UserError, match="one teacher"):
        tuned_settings(tree)
