"""A whole run in-process: what it writes, and that an interrupted one ends where the other does."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from densekd.build.provenance import teacher_note
from densekd.config.load import make_config
from densekd.config.schema import Teacher
from densekd.engine.checkpoint import load_checkpoint
from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.errors import UserError
from densekd.models.weights import read_metadata, read_weights
from densekd.workflows.evaluate import evaluate_weights
from densekd.workflows.run import run


def go(tree, folder, *, distil=True, resume=False):
    config = make_config(tree, "test")
    return run(config, distil=distil, folder=folder, command="test", resume=resume, device="cpu")


def test_a_run_writes_its_folder(tiny_tree, tmp_path):
    tiny_tree["note"] = "a note"
    assert go(tiny_tree, tmp_path / "r") == 0
    folder = RunFolder(tmp_path / "r")
    rows = read_metrics(folder.metrics)
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 4]
    assert {"task/ce", "distill/pixel_wise", "distill/pair_wise", "distill/holistic",
            "discriminator/penalty", "lr", "images_per_s", "memory_gb"} <= set(rows[0])  # fmt: skip
    result = json.loads(folder.result.read_text())
    assert result["scores"]["miou"] == rows[-1]["val/miou"]
    assert result["note"] == "a note"
    assert result["macs"] > result["parameters"]
    assert yaml.safe_load(folder.config.read_text())["distill"]["pair_wise"]["weight"] == 10
    assert folder.command.read_text() == "test\n"
    assert json.loads(folder.environment.read_text())["versions"]["torch"]
    # the student alone, without any prefix, with what is needed to use it
    state = read_weights(folder.student)
    assert "level1.conv.weight" in state
    about = json.loads(read_metadata(folder.student)["densekd"])
    assert about["classes"][0] == "road"
    assert about["input"]["order"] == "bgr"
    # and it scores the same when it is loaded
    scores = evaluate_weights(
        make_config(tiny_tree, "test"), folder.student, "val", device="cpu", quiet=True
    )
    assert scores["miou"] == result["scores"]["miou"]


def test_norms_computed_again_and_synchronised_alone_change_nothing(tiny_tree, tmp_path):
    assert go(tiny_tree, tmp_path / "plain") == 0
    tiny_tree["train"].update(recompute_norms=True, sync_batchnorm=True)
    assert go(tiny_tree, tmp_path / "again") == 0
    plain, again = (load_file(RunFolder(tmp_path / n).student) for n in ("plain", "again"))
    for name, value in plain.items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("ema", [None, 0.9])
def test_stopped_and_resumed_is_the_uninterrupted_run_bit_for_bit(tiny_tree, tmp_path, ema):
    tiny_tree["train"].update(steps=5, save_every=1, ema=ema)
    tiny_tree["optim"] = {"name": "adam", "lr": 1e-3}
    assert go(tiny_tree, tmp_path / "whole") == 0

    # Stop after 3 of 5 steps as a kill would: by an exception between a save and the end.
    import densekd.engine.trainer as trainer

    original = trainer.Training.save

    def die(self):
        original(self)
        if self.done == 3:
            raise KeyboardInterrupt

    trainer.Training.save = die
    try:
        with pytest.raises(KeyboardInterrupt):
            go(tiny_tree, tmp_path / "parts")
    finally:
        trainer.Training.save = original
    assert go(tiny_tree, tmp_path / "parts", resume=True) == 0

    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    assert whole.student.read_bytes() == parts.student.read_bytes()
    a, b = load_checkpoint(whole.last), load_checkpoint(parts.last)
    for part in ("student", "discriminator", "ema"):
        if a[part] is not None:
            assert all(torch.equal(v, b[part][k]) for k, v in a[part].items()), part
    speed = ("images_per_s", "memory_gb")
    strip = [
        [{k: v for k, v in row.items() if k not in speed} for row in read_metrics(f.metrics)]
        for f in (whole, parts)
    ]
    assert strip[0] == strip[1]


def test_training_alone_ignores_the_teacher(tiny_tree, tmp_path):
    tiny_tree["teacher"]["name"] = "does_not_exist"
    tiny_tree["train"]["steps"] = 1
    assert go(tiny_tree, tmp_path / "r", distil=False) == 0
    rows = read_metrics(tmp_path / "r" / "metrics.jsonl")
    assert not any(k.startswith("distill/") for k in rows[0])


def test_an_existing_folder_is_refused_and_untouched(tiny_tree, tmp_path):
    precious = tmp_path / "r" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"already exists|no config\.yaml"):
            go(tiny_tree, tmp_path / "r", resume=resume)
    assert [p.name for p in precious.parent.iterdir()] == ["thesis.txt"]


def test_resume_with_other_settings_names_them(tiny_tree, tmp_path):
    tiny_tree["train"]["steps"] = 2
    assert go(tiny_tree, tmp_path / "r") == 0
    tiny_tree["optim"]["lr"] = 0.5
    with pytest.raises(UserError, match=r"optim\.lr: 0\.01 -> 0\.5"):
        go(tiny_tree, tmp_path / "r", resume=True)


def test_resume_with_other_threads_says_so(tiny_tree, tmp_path, capsys):
    def resumed():
        (tmp_path / "r" / "result.json").unlink()  # as if it had been killed before the end
        go(tiny_tree, tmp_path / "r", resume=True)
        return capsys.readouterr().out

    go(tiny_tree, tmp_path / "r")
    assert "up to rounding" not in resumed()
    environment = tmp_path / "r" / "environment.json"
    about = json.loads(environment.read_text())
    environment.write_text(json.dumps({**about, "threads": about["threads"] + 3}))
    assert f"OMP_NUM_THREADS={about['threads'] + 3} makes them exact" in resumed()


def test_resume_of_a_finished_run_does_nothing(tiny_tree, tmp_path):
    tiny_tree["train"]["steps"] = 2
    go(tiny_tree, tmp_path / "r")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*") if p.is_file()}
    assert go(tiny_tree, tmp_path / "r", resume=True) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*") if p.is_file()} == before


def test_a_distillation_is_not_resumed_as_a_training(tiny_tree, tmp_path):
    tiny_tree["train"]["steps"] = 2
    go(tiny_tree, tmp_path / "r", distil=False)
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["teacher"] is None
    with pytest.raises(UserError, match="other settings"):
        go(tiny_tree, tmp_path / "r", resume=True)


def trained_teacher(tiny_tree, folder, **change):
    """Weights of a run of ours, for the tiny recipe's teacher."""
    tree = {**tiny_tree, "model": {"name": "espnet", "options": {"p": 1, "q": 1}}, **change}
    tree["train"] = {**tree["train"], "steps": 1}
    go(tree, folder, distil=False)
    return str(folder / "checkpoints" / "student.safetensors")


def test_a_teacher_of_other_content_is_refused_on_resume(tiny_tree, tmp_path):
    weights = trained_teacher(tiny_tree, tmp_path / "t")
    tiny_tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "weights": weights}
    go(tiny_tree, tmp_path / "r")
    (tmp_path / "r" / "result.json").unlink()  # as if it had been killed before the end
    other = trained_teacher(tiny_tree, tmp_path / "t2", seed=5)
    (tmp_path / "t" / "checkpoints" / "student.safetensors").write_bytes(Path(other).read_bytes())
    with pytest.raises(UserError, match="teacher weights"):
        go(tiny_tree, tmp_path / "r", resume=True)


def test_a_teacher_of_other_classes_is_refused_and_its_note_is_carried(tiny_tree, tmp_path):
    weights = trained_teacher(tiny_tree, tmp_path / "t", note="teacher saw val")
    tiny_tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "weights": weights}
    go(tiny_tree, tmp_path / "r")
    assert json.loads((tmp_path / "r" / "result.json").read_text())["note"] == "teacher saw val"
    student = tmp_path / "r" / "checkpoints" / "student.safetensors"
    assert json.loads(read_metadata(student)["densekd"])["note"] == "teacher saw val"

    about = json.loads(read_metadata(weights)["densekd"])
    about["classes"] = about["classes"][::-1]
    save_file(load_file(weights), weights, metadata={"densekd": json.dumps(about)})
    with pytest.raises(UserError, match="trained for the classes sign"):
        go(tiny_tree, tmp_path / "r2")


def test_the_teacher_is_tried_on_the_students_crops(tiny_tree, tmp_path, capsys):
    go(tiny_tree, tmp_path / "r")
    out = capsys.readouterr().out
    assert "teacher's pixel_accuracy on a first batch, cut as the student sees it: 0." in out
    assert "(a constant guess: 0." in out
    # It is untrained, so it knows no more than the guess.
    assert "warning: on this batch the teacher is no better than an answer" in out


@pytest.mark.parametrize(("known", "warns"), [(0.9, False), (0.1, True), (float("nan"), False)])
def test_a_teacher_that_knows_something_is_not_doubted(
    tiny_tree, tmp_path, capsys, monkeypatch, known, warns
):
    monkeypatch.setattr("densekd.workflows.run.teacher_knows", lambda *_: known)
    tiny_tree["train"]["steps"] = 1
    go(tiny_tree, tmp_path / "r")
    out = capsys.readouterr().out
    assert ("warning: on this batch the teacher" in out) == warns
    assert ("the first batch has no label, so the teacher's" in out) == (known != known)
    assert "nan" not in out


def test_the_first_lines_say_what_the_machine_will_not_do(tiny_tree, tmp_path, capsys, monkeypatch):
    for module in ("build.data", "workflows.doctor.machine"):
        monkeypatch.setattr(f"densekd.{module}.available_cores", lambda: 1)
    tiny_tree["data"]["workers"] = 2
    tiny_tree["train"]["steps"] = 1
    go(tiny_tree, tmp_path / "r")
    out = capsys.readouterr().out
    assert out.count("data.workers is 2; 1 loader process is used") == 1


def test_published_checkpoints_are_known_to_have_seen_val(shared):
    for name in ("ESPNet_base", "ESPNet_pixel_pair_unlabelled", "ESPNetC_pixel_pair"):
        path = shared / "checkpoints" / "espnet_camvid" / f"{name}.pth"
        assert teacher_note(Teacher(name="espnet", weights=str(path))) == "teacher saw val"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"name": "espnot"}}, ["model.name", "espnot", "did you mean"]),
        ({"model": {"name": "espnet_c", "options": {"pp": 1}}}, ["model.options.pp", "'p'"]),
        ({"model": {"name": "no_such.module.Net"}}, ["model.name", "cannot be imported"]),
        ({"data": {"dataset": "cityscape"}}, ["data.dataset", "'cityscapes'"]),
        ({"data": {"dataset": "camvid"}}, ["data.root"]),
        ({"data": {"dataset": "camvid", "root": "/no/such"}}, ["/no/such"]),
        ({"data": {"dataset": "scenes", "train_split": "trian"}}, ["trian", "train"]),
        ({"teacher": {"name": "espnet"}}, ["teacher.weights"]),
        ({"teacher": {"name": "espnet", "weights": "/no/file.pth"}}, ["/no/file.pth"]),
        ({"distill": {"pixle_wise": {"weight": 1}}}, ["distill.pixle_wise", "'pixel_wise'"]),
        (
            {"distill": {"pair_wise": {"weight": 1, "granulariti": 2}}},
            ["distill.pair_wise.granulariti", "'granularity'"],
        ),
        ({"distill": {"pair_wise": {"weight": 1, "student": "b4"}}}, ["b4", "b3"]),
        ({"distill": {}}, ["distill", "pixel_wise"]),
        ({"optim": {"groups": [{"prefix": "backbone"}]}}, ["optim.groups", "backbone"]),
        ({"train": {"best": "mAP"}}, ["train.best", "miou"]),
        ({"task": {"class_weights": [1.0]}}, ["class_weights", "9 classes"]),
        ({"model": {"name": "espnet_c", "in_channels": 4}}, ["in_channels"]),
    ],
)
def test_bad_settings_end_before_a_folder_is_made(tiny_tree, tmp_path, change, words):
    for section, value in change.items():
        tiny_tree[section] = {**tiny_tree.get(section, {}), **value} if section == "data" else value
    if "options" in tiny_tree["data"] and tiny_tree["data"]["dataset"] != "scenes":
        tiny_tree["data"].update(options={}, train_options={}, val_options={})
    with pytest.raises(UserError) as caught:
        go(tiny_tree, tmp_path / "r")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "r").exists()
