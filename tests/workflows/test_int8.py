"""A student that learns with the rounding of int8, taught by its own float self: run, resume, load, export."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch

import densekd
from densekd.cli.main import main
from densekd.config.load import make_config
from densekd.engine.folder import RunFolder
from densekd.engine.trainer import Training
from densekd.errors import UserError
from densekd.models.weights import read_metadata
from densekd.rewrite import is_int8, unseen_layers
from densekd.workflows.evaluate import evaluate_weights
from densekd.workflows.forms import settled
from tests.workflows.test_functions import tree_of


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """The weights of a finished float run."""
    out = tmp_path_factory.mktemp("float")
    tree = tree_of("segmentation")
    tree["optim"] = {"name": "adam", "lr": 1e-3}
    tree["train"]["steps"] = 8
    return RunFolder(densekd.train(tree, name="f", out=out, device="cpu").folder).student


def recipe(floats) -> dict:
    tree = tree_of("segmentation")
    del tree["note"]
    network = {**tree["model"], "weights": str(floats)}
    return {
        **tree,
        "model": {**network, "int8": True},
        "teacher": network,
        "distill": {"pixel_wise": {"weight": 1}},
        "optim": {"name": "adam", "lr": 1e-4},
        "train": {"steps": 4, "save_every": 2, "log_every": 1},
    }


@pytest.fixture(scope="module")
def finished(floats, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8")
    return densekd.distill(recipe(floats), name="q", out=out, device="cpu")


@pytest.fixture(scope="module")
def program(finished, tmp_path_factory):
    """It as a program, and what was said."""
    file = tmp_path_factory.mktemp("files") / "a.pt2"
    words = ["export", str(finished.folder), "--out", str(file), "--size", "64", "96"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*words, "--with", "none", "--json"]) == 0
    return file, json.loads(said.getvalue())


def test_it_stays_near_its_float_self_and_knows_what_it_is(finished, floats):
    model, teacher = densekd.load(finished.folder), densekd.load(floats)
    assert is_int8(model.model)
    assert not unseen_layers(model.model)
    assert not is_int8(teacher.model)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer, exact = model(images).prediction, teacher(images).prediction
    assert 0 < (answer - exact).abs().mean() < 0.1 * exact.abs().max()
    about = json.loads(read_metadata(RunFolder(finished.folder).student)["densekd"])
    assert about["model"]["int8"] is True
    assert about["note"] == "a note"  # what the teacher and the first weights say of their data
    scores = densekd.evaluate(finished.folder, device="cpu")
    assert scores["miou"] == finished.scores["miou"]


def test_a_stopped_run_goes_on_to_the_bit(finished, floats, tmp_path, monkeypatch):
    save = Training.save

    def cut_off(self, *args, **options):
        save(self, *args, **options)
        if self.done == 2:
            raise KeyError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", cut_off)
        with pytest.raises(KeyError):
            densekd.distill(recipe(floats), name="q", out=tmp_path, device="cpu")
    densekd.distill(recipe(floats), name="q", out=tmp_path, device="cpu", resume=True)
    files = [RunFolder(folder).student for folder in (finished.folder, tmp_path / "q")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_its_weights_are_no_float_weights(finished):
    tree = tree_of("segmentation")
    tree["model"]["weights"] = str(RunFolder(finished.folder).student)
    with pytest.raises(UserError, match=r"was trained to be int8; set model\.int8 true"):
        evaluate_weights(make_config(tree, "test"), None, "val", device="cpu")
    tree["model"]["int8"] = True
    scores = evaluate_weights(make_config(tree, "test"), None, "val", device="cpu")
    assert scores["miou"] == finished.scores["miou"]


def test_settings_that_work_on_norms_are_refused(floats):
    tree = recipe(floats)
    tree["train"]["recompute_norms"] = True
    with pytest.raises(UserError, match=r"train\.recompute_norms: works on batch norms"):
        make_config(tree, "test")


@pytest.mark.slow
def test_a_program_of_it_answers_as_it_does(finished, program):
    file, said = program
    assert said["trained_int8"] is True
    # A sum in the middle of two values falls to either side, and what follows carries it on: the mean counts.
    assert all(check["error"] < 1e-2 for check in said["checks"])
    images = torch.rand(1, 3, 75, 101)
    maps = torch.export.load(file).module()(images)
    with torch.no_grad():
        expected = densekd.load(finished.folder)(images).prediction
    assert (maps - expected).abs().mean() < 1e-2 * expected.abs().max()


def test_what_weights_saw_reaches_the_students_of_their_file(tmp_path):
    file = tmp_path / "a.pt2"
    program = torch.export.export(torch.nn.Identity(), (torch.rand(1),))
    about = {"densekd.json": json.dumps({"note": "saw val"})}
    torch.export.save(program, file, extra_files=about)
    tree = tree_of("segmentation")
    del tree["note"]
    tree["teacher"] = {"name": "exported", "options": {"path": str(file)}}
    tree["distill"] = {"pixel_wise": {"weight": 1}}
    assert settled(make_config(tree, "test"), distil=True).note == "teacher saw val"
    assert settled(make_config(tree, "test"), distil=False).note == ""


@pytest.mark.slow
def test_its_onnx_file_scores_as_it_does(finished, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "a.onnx"
    words = ["export", str(finished.folder), "--out", str(file), "--size", "64", "96"]
    assert main([*words, "--int8"]) == 2
    assert "was trained to be int8 and is written so by itself" in capsys.readouterr().err
    assert main(words) == 0
    assert capsys.readouterr().out.count("on average") == 3
    scores = densekd.evaluate(file, finished.folder / "config.yaml", device="cpu")
    assert scores["miou"] == pytest.approx(finished.scores["miou"], abs=1e-2)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    same = densekd.load(finished.folder).predict(image)
    assert same.shape == (64, 96)
