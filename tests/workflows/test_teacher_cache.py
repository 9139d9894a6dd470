"""Runs whose teacher is asked once: they fill the store, hit it, go on exactly, and refuse what does not fit."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

import densekd.engine.trainer as trainer
from densekd.build.provenance import samples_digest
from densekd.config.load import make_config
from densekd.data import Folder
from densekd.distill.teacher import Teacher
from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.errors import UserError
from densekd.models.espnet import espnet
from densekd.models.weights import save_weights
from densekd.workflows.ablate import ablate
from densekd.workflows.run import run
from tests.data.conftest import make_image, make_labels


@pytest.fixture
def tree(tiny_tree, tmp_path):
    """Two epochs of augmentation of 4 images, seen in 4 steps of 2; the store is in the test's folder."""
    torch.manual_seed(0)
    weights = tmp_path / "teacher.safetensors"
    save_weights(espnet(num_classes=9, p=1, q=1), weights, {})
    tiny_tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "weights": str(weights)}
    tiny_tree["data"].update(
        options={"height": 32, "width": 64},
        train_options={"length": 4},
        val_options={"length": 2},
        crop=[32, 64],
        augment_epochs=2,
    )
    tiny_tree["distill"]["teacher_cache"] = {"folder": str(tmp_path / "store")}
    tiny_tree["train"] = {"steps": 6, "log_every": 1, "save_every": 1}
    return tiny_tree


@pytest.fixture
def asked(monkeypatch):
    """Images the teacher saw, call by call."""
    calls = []
    forward = Teacher.forward

    def noted(self, images, *args, **kwargs):
        calls.append(len(images))
        return forward(self, images, *args, **kwargs)

    monkeypatch.setattr(Teacher, "forward", noted)
    return calls


def go(tree, folder, *, resume=False, distil=True):
    config = make_config(tree, "test")
    return run(config, distil=distil, folder=folder, command="test", resume=resume, device="cpu")


def student(folder):
    return RunFolder(folder).student.read_bytes()


def test_the_first_run_fills_and_the_next_student_hits(tree, tmp_path, asked, capsys):
    assert go(tree, tmp_path / "one") == 0
    said = capsys.readouterr().out
    assert "4 images × 2 epochs = 8 records" in said
    assert f"{tmp_path / 'store'}" in said
    assert "0 % filled" in said
    filled = len(asked)

    tree["model"]["options"] = {"p": 1, "q": 2}  # another student with a map of the same size
    asked.clear()
    assert go(tree, tmp_path / "two") == 0
    assert "100 % filled" in capsys.readouterr().out
    # What is left: the dry run, the plan, the check of six records, and its score on the first batch.
    assert filled - len(asked) == 8 - 6
    rows = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert {"distill/pixel_wise", "distill/pair_wise", "distill/holistic"} <= set(rows[0])


def test_a_cached_run_learns_nearly_what_a_live_one_does(tree, tmp_path):
    assert go(tree, tmp_path / "cached") == 0
    tree["distill"]["teacher_cache"] = None
    assert go(tree, tmp_path / "live") == 0
    one, two = (load_file(RunFolder(tmp_path / n).student) for n in ("cached", "live"))
    for name, value in two.items():
        torch.testing.assert_close(one[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("storage", "lost"), [("fp16", "nothing"), ("int8", "everything"), ("top_k", "everything")]
)
def test_resume_is_exact_with_and_without_the_records(tree, tmp_path, storage, lost, monkeypatch):
    """Misses use what is stored, so hits and misses are the same to the student."""
    tree["distill"]["teacher_cache"]["storage"] = storage
    assert go(tree, tmp_path / "whole") == 0
    shutil.rmtree(tmp_path / "store")

    original = trainer.Training.save

    def die(self):
        original(self)
        if self.done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Training, "save", die)
        with pytest.raises(KeyboardInterrupt):
            go(tree, tmp_path / "parts")
    if lost == "everything":
        shutil.rmtree(tmp_path / "store")
    assert go(tree, tmp_path / "parts", resume=True) == 0
    assert student(tmp_path / "whole") == student(tmp_path / "parts")


def test_where_the_store_lies_may_change_on_resume_and_its_storage_may_not(tree, tmp_path):
    assert go(tree, tmp_path / "r") == 0
    RunFolder(tmp_path / "r").result.unlink()
    tree["distill"]["teacher_cache"].update(folder=str(tmp_path / "elsewhere"), disk_gb=1.0)
    assert go(tree, tmp_path / "r", resume=True) == 0
    tree["distill"]["teacher_cache"]["storage"] = "int8"
    with pytest.raises(UserError, match="storage: 'fp16' -> 'int8'"):
        go(tree, tmp_path / "r", resume=True)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("data", {"scale": [0.9, 1.1]}),
        ("data", {"train_options": {"length": 4, "seed": 1}}),
        (None, {"seed": 1}),
        ("train", {"amp": "bf16"}),
    ],
)
def test_what_the_maps_depend_on_has_a_store_of_its_own(tree, tmp_path, section, change):
    tree["train"]["steps"] = 1
    assert go(tree, tmp_path / "one") == 0
    (tree if section is None else tree[section]).update(change)
    assert go(tree, tmp_path / "two") == 0
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_other_weights_have_a_store_of_their_own_and_other_batches_not(tree, tmp_path):
    tree["train"]["steps"] = 1
    assert go(tree, tmp_path / "one") == 0
    tree["data"]["batch_size"] = 3
    tree["optim"]["lr"] = 0.02
    assert go(tree, tmp_path / "two") == 0
    assert len(list((tmp_path / "store").iterdir())) == 1
    torch.manual_seed(1)
    save_weights(espnet(num_classes=9, p=1, q=1), tree["teacher"]["weights"], {})
    assert go(tree, tmp_path / "three") == 0
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_records_of_something_else_are_refused_before_a_folder_is_made(tree, tmp_path):
    assert go(tree, tmp_path / "one") == 0
    (mine,) = (tmp_path / "store").iterdir()
    torch.manual_seed(1)
    save_weights(espnet(num_classes=9, p=1, q=1), tree["teacher"]["weights"], {})
    tree["train"]["steps"] = 1
    assert go(tree, tmp_path / "two") == 0
    (other,) = set((tmp_path / "store").iterdir()) - {mine}
    for path in mine.glob("*.maps"):  # as if the key had not known of the other weights
        shutil.copy(path, other)
    with pytest.raises(UserError, match="stale"):
        go(tree, tmp_path / "three")
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"data": {"augment_epochs": None}},
            r"needs data\.augment_epochs, else no augmented image",
        ),
        ({"data": {"crop": None}}, r"needs data\.crop"),
        (
            {"distill": {"teacher_cache": {"disk_gb": 1e-6}}},
            r"= 8 records × .*data\.augment_epochs",
        ),
        ({"distill": {"teacher_cache": {"disk_gb": 0}}}, "above 0"),
        ({"distill": {"teacher_cache": {"storage": "fp8"}}}, "storage"),
        ({"distill": {"teacher_cache": {"storage": "top_k", "top_k": 9}}}, "9 of 9 classes"),
    ],
)
def test_what_cannot_be_stored_ends_before_a_folder_is_made(tree, tmp_path, change, words):
    for section, values in change.items():
        tree[section].update(values)
    with pytest.raises(UserError, match=words):
        go(tree, tmp_path / "r")
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "store").exists()


def detection(tree):
    network = {"name": "fcos_timm", "options": {"backbone": "test_resnet", "pyramid_channels": 32,
               "head_convs": 1, "extra_levels": 0}}  # fmt: skip
    tree["data"]["options"].update(target="boxes", height=64, width=128)
    tree["data"]["crop"] = [64, 128]
    tree["task"] = "detection"
    return network


def depth(tree):
    tree["data"]["options"].update(target="depth", height=64, width=128)
    tree["data"]["crop"] = [64, 128]
    tree["task"] = {"name": "depth", "min_depth": 1, "max_depth": 80}
    return {"name": "depth_timm", "options": {"backbone": "test_resnet", "pyramid_channels": 16}}


@pytest.mark.parametrize("task", [detection, depth])
def test_levels_of_a_detector_and_depth_are_stored(tree, tmp_path, task, capsys):
    """Every term of these tasks: pyramid levels, confidence, the discriminator's own map."""
    network = task(tree)
    tree.update(model=network, teacher={**network, "allow_untrained": True})
    tree["distill"]["feature_mimic"] = {"weight": 1}
    tree["data"].update(augment_epochs=1, train_options={"length": 2}, val_options={"length": 1})
    tree["train"]["steps"] = 2
    assert go(tree, tmp_path / "first") == 0
    assert go(tree, tmp_path / "again") == 0
    said = capsys.readouterr().out
    assert "confidence-" in said
    assert "holistic-" in said
    assert "100 % filled" in said
    assert student(tmp_path / "first") == student(tmp_path / "again")


def test_training_alone_needs_no_store(tree, tmp_path):
    tree["train"]["steps"] = 1
    assert go(tree, tmp_path / "r", distil=False) == 0
    assert not (tmp_path / "store").exists()


def test_an_edited_image_makes_another_set(tmp_path):
    for i in range(2):
        make_image(tmp_path / "train" / "images" / f"{i}.png", seed=i)
        make_labels(tmp_path / "train" / "masks" / f"{i}.png", [0, 1])
    reader = Folder(tmp_path, split="train", classes=["a", "b"])
    before = samples_digest(reader, None)
    assert before == samples_digest(reader, "/another/place")
    path = reader.paths(1)[0]
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))
    assert samples_digest(reader, None) != before


@pytest.mark.slow
def test_an_ablations_runs_share_one_store(tree, tmp_path):
    tree["train"]["steps"] = 4
    config = make_config(tree, "test")
    status, _ = ablate(config, folder=tmp_path / "ablation", jobs=1, device="cpu")
    assert status == 0
    assert len(list((tmp_path / "store").iterdir())) == 1
    # The run with all terms comes first and fills; the others find everything.
    logs = {p.parent.name: p.read_text() for p in (tmp_path / "ablation").rglob("seed0.log")}
    assert "0 % filled" in logs["pi_pa_ho"]
    assert "100 % filled" in logs["pi_pa"]
    assert "100 % filled" in logs["pi"]
    assert "teacher cache" not in logs["student"]
