"""Recipes whose teacher another runtime computes: what is checked at the start, refused, kept and resumed."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from densekd.build import runtimes
from densekd.build.run import assemble
from densekd.config.load import make_config
from densekd.engine.folder import RunFolder
from densekd.engine.launch import Process
from densekd.errors import UserError
from densekd.workflows import tune as tuning
from densekd.workflows.doctor.examine import examine
from tests.reliability import runs

CPU = Process(rank=0, world_size=1, device=torch.device("cpu"))
HERE = "tests.workflows.test_teacher_runtime"


def tiny_teacher(*, num_classes: int, choosing: bool = False) -> nn.Module:
    """A teacher that is exported in a moment; or one that cannot be."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
    network.append(Choosing() if choosing else nn.Identity())
    return network.append(nn.Conv2d(8, num_classes, 1))


class Choosing(nn.Module):
    def forward(self, x):
        return x if bool(x.sum() > 0) else -x


@pytest.fixture
def tree(tiny_tree):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tree = deepcopy(tiny_tree)
    tree["teacher"] = {"name": f"{HERE}.tiny_teacher", "allow_untrained": True}
    tree["teacher"]["runtime"] = "onnxruntime"
    tree["distill"] = {
        "pixel_wise": {"weight": 10},
        "pair_wise": {"weight": 10, "student": "prediction", "teacher": "2"},
    }
    tree["data"].update(crop=[32, 64], options={"height": 32, "width": 64})
    return tree


go = partial(runs.go, distil=True)


def test_a_run_says_how_near_its_teacher_is_and_resumes_to_the_bit(tree, tmp_path, capsys):
    assert go(tree, tmp_path / "whole") == 0
    said = capsys.readouterr().out
    assert "teacher.runtime: onnxruntime computes the teacher; its maps are within" in said
    with runs.dies_after(2):
        go(tree, tmp_path / "parts")
    assert go(tree, tmp_path / "parts", resume=True) == 0
    whole, parts = (RunFolder(tmp_path / name).student.read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    tree["teacher"]["runtime"] = "eager"
    with pytest.raises(UserError, match=r"teacher\.runtime: 'onnxruntime' -> 'eager'"):
        go(tree, tmp_path / "parts", resume=True)


def test_each_of_several_teachers_and_int8_and_the_stores_identity(tree, tmp_path):
    teacher = tree.pop("teacher")
    tree["teachers"] = {"a": {**teacher, "runtime": "onnxruntime_int8"}, "b": teacher, "c": teacher}
    tree["teachers"]["c"] = {**teacher, "runtime": "eager"}
    tree["distill"]["pair_wise"]["teacher_name"] = "b"
    tree["distill"]["pixel_wise"]["teacher_name"] = "a"
    tree["data"]["augment_epochs"] = 1
    tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store")}
    made = assemble(make_config(tree, "test"), CPU, distil=True)
    programs = {name: teacher.program for name, teacher in made.distiller.teachers.items()}
    assert programs["c"] is None
    assert programs["a"].prediction
    assert not programs["b"].prediction, "pair_wise compares a feature alone"
    said = "\n".join(made.remarks)
    assert "teachers.a.runtime: onnxruntime_int8" in said
    assert "the terms change by at most" in said
    assert "teachers.b.runtime: onnxruntime computes" in said
    (about,) = (tmp_path / "store").rglob("about.json")
    assert "onnxruntime_int8" in about.read_text()


def test_errors_above_the_bounds_are_refused_before_anything_is_written(
    tree, tmp_path, monkeypatch
):
    monkeypatch.setattr(runtimes, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"teacher\.runtime: onnxruntime differs from PyTorch by"):
        go(tree, tmp_path / "run")
    tree["teacher"]["runtime"] = "onnxruntime_int8"
    monkeypatch.setattr(runtimes, "INT8_GRADIENT", 0.0)
    with pytest.raises(UserError, match=r"int8 changes distill\.p\w+ by .* Take onnxruntime, "):
        go(tree, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_term_whose_weight_ends_at_0_is_checked_too(tree):
    tree["teacher"]["runtime"] = "eager"
    whole = assemble(make_config(tree, "test"), CPU, distil=True)
    tree["distill"]["pixel_wise"]["weight"] = [[0, 10], [2, 0]]
    fading = assemble(make_config(tree, "test"), CPU, distil=True)
    pairs = [runtimes.term_gradients(r.distiller, whole.first_batch()) for r in (whole, fading)]
    (value, row), (faded, other) = (found["distill.pixel_wise"] for found in pairs)
    assert value == faded > 0
    assert torch.equal(row, other)
    assert row.norm() > 0
    assert fading.distiller.terms[0].weight_at(1) == 5


def test_doctor_scores_in_pytorch_what_a_program_cannot_take(tree):
    tree["data"]["crop"] = [32, 32]  # validation images are 32 x 64
    findings = examine(make_config(tree, "test"), device="cpu", images=2)
    assert not [f.what for f in findings if "exported for images" in f.what + f.advice]
    assert any("teacher on 2 validation images" in f.what for f in findings)
    (said,) = [f for f in findings if f.what.startswith("teacher.runtime: ")]
    assert said.level == "note", "a teacher that is near is nothing to warn of"


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tree, tmp_path):
    tree["teacher"]["options"] = {"choosing": True}
    with pytest.raises(UserError, match=r"teacher\.runtime: Sequential cannot be exported"):
        go(tree, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"compile": True}, "leaves nothing to torch.compile"),
        ({"int8": True}, "does not run the rounding"),
        ({"precision": "bf16"}, "computes in formats of its own"),
    ],
)
def test_settings_that_exclude_one_another(tree, change, told):
    tree["teacher"].update(change)
    with pytest.raises(UserError, match=told):
        make_config(tree, "test")


def test_images_of_several_sizes_are_refused(tree):
    tree["data"]["crop"] = None
    with pytest.raises(UserError, match=r"teacher\.runtime: onnxruntime needs data\.crop"):
        make_config(tree, "test")


def test_a_teacher_on_another_device_is_refused(tree):
    eager = {**tree, "teacher": {**tree["teacher"], "runtime": "eager"}}
    made = assemble(make_config(eager, "t"), CPU, distil=True)
    batch = made.first_batch()
    batch.images = batch.images.to("meta")
    with pytest.raises(UserError, match="computes on the CPU, and this run is on meta"):
        runtimes.use_runtimes(make_config(tree, "t"), made.distiller, batch, lambda count: [])


def test_tune_tries_runtimes_and_keeps_int8_for_those_who_ask(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEKD_CACHE", str(tmp_path))
    tree["teacher"]["runtime"] = "eager"
    config = make_config(tree, "test")
    levers = {
        name: lever
        for lever in tuning.LEVERS
        if (name := lever.changes.get("teacher.runtime", "eager")) != "eager"
    }
    assert set(levers) == {"onnxruntime", "openvino", "onnxruntime_int8", "openvino_int8"}
    assert {name for name, lever in levers.items() if lever.exact} == {"onnxruntime", "openvino"}
    assert levers["onnxruntime"].applies(config, torch.device("cpu"))
    assert not levers["onnxruntime"].applies(config, torch.device("cuda"))
    monkeypatch.setattr(tuning, "installed", lambda name: not name.startswith("openvino"))
    assert not levers["openvino"].applies(config, torch.device("cpu"))

    def interleave(arms, *, pairs, warmup):
        return {name: [1.0 if name == "base" else 0.5] * pairs for name in arms}

    monkeypatch.setattr(tuning, "interleave", interleave)
    monkeypatch.setattr(tuning, "LEVERS", tuple(levers.values()))
    found = tuning.tune(config, rounds=3, device="cpu", int8=True)
    assert found["settings"] == {"teacher.runtime": "onnxruntime"}
    tried = {lever["changes"]["teacher.runtime"]: lever for lever in found["levers"]}
    assert tried["onnxruntime"]["gradient_error"] < 1e-4
    assert tried["onnxruntime_int8"]["gradient_error"] > 1e-3
    assert "changes losses or gradients" in tried["onnxruntime_int8"]["why"]
    # A run takes what was remembered, and does not try runtimes by itself.
    tree["train"]["auto"] = True
    assert go(tree, tmp_path / "run") == 0
    assert "runtime: onnxruntime" in RunFolder(tmp_path / "run").config.read_text()
