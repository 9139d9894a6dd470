"""A recipe looked at as a whole, on small scenes; nothing is written."""

import pytest
import torch

from densekd.config.load import make_config
from densekd.errors import UserError
from densekd.models.espnet import espnet, espnet_c
from densekd.models.weights import save_weights
from densekd.scenes import CLASSES
from densekd.workflows.doctor.examine import examine


@pytest.fixture
def tree(tiny_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_tree["data"].update(options={"height": 32, "width": 64}, crop=[32, 64])
    return tiny_tree


def look(tree, **options):
    return examine(make_config(tree, "test"), device="cpu", images=2, **options)


def levels(findings):
    """(level, setting) of what is not ok."""
    return [(f.level, f.setting) for f in findings if f.level != "ok"]


def test_an_untrained_teacher_and_all_the_rest(tree, tmp_path):
    findings = look(tree)
    assert ("error", "teacher.weights") in levels(findings)
    text = "\n".join(map(str, findings))
    for words in (
        "model espnet_c: no weights are loaded",
        "teacher on 2 validation images: pixel_accuracy",
        "pixel_wise: student prediction 9×",
        "pair_wise: student",
        "task: loss",
        "pair_wise: value",
        "holistic: value",
        "about ",
        "memory at the peak",
        "the run's folder is at runs",
    ):
        assert words in text, words
    assert list(dict.fromkeys(f.area for f in findings)) == [
        "data", "networks", "terms", "cost",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_student_alone(tree):
    del tree["teacher"], tree["distill"]
    findings = look(tree)
    # A class may be absent from so few scenes, and the disk may be nearly full.
    assert {(f.level, f.area) for f in findings} <= {
        ("ok", "data"), ("note", "data"), ("ok", "networks"), ("ok", "terms"), ("ok", "cost"), ("warning", "cost"),
    }  # fmt: skip
    assert any("task: loss" in f.what for f in findings)


def test_a_single_node_and_a_silent_weight(tree):
    del tree["distill"]["holistic"]
    tree["distill"]["pair_wise"]["granularity"] = 1.0
    tree["distill"]["pixel_wise"]["weight"] = 1e-9
    found = dict.fromkeys(levels(look(tree)))
    assert ("error", "distill.pair_wise.granularity") in found
    assert ("warning", "distill.pair_wise") in found
    assert ("warning", "distill.pixel_wise.weight") in found


def test_what_does_not_fit_is_an_error_of_its_setting(tree):
    tree["distill"]["pair_wise"]["student"] = "no.such.module"
    last = look(tree)[-1]
    assert (last.level, last.area) == ("error", "networks")
    assert "no.such.module" in last.what
    tree["data"] = {"dataset": "camvid", "workers": 0}
    (only,) = look(tree)
    assert (only.level, only.area, only.setting) == ("error", "data", "data.root")


def test_a_batch_of_one_with_nothing_left_of_it(tree):
    """The dry run sees it, before a run has a folder."""
    del tree["teacher"], tree["distill"]
    tree["data"].update(batch_size=1, crop=[8, 8])  # ESPNet's stride
    (error,) = [finding for finding in look(tree) if finding.level == "error"]
    assert "data.batch_size" in str(error)


def weights_of(network, path):
    save_weights(network, path, {})
    return str(path)


def test_other_classes_and_a_student_as_good(tree, tmp_path):
    """A teacher that is its student: not above it, and no left-over class."""
    torch.manual_seed(0)
    network = espnet_c(num_classes=9, p=1, q=1)
    path = weights_of(network, tmp_path / "student.safetensors")
    tree["model"]["weights"] = path
    tree["teacher"] = {
        "name": "espnet_c",
        "options": {"p": 1, "q": 1},
        "weights": path,
        "num_classes": 9,
        "classes": {name: [i] for i, name in enumerate(CLASSES)},
    }
    tree["distill"] = {"pixel_wise": {"weight": 1}}
    findings = look(tree)
    text = "\n".join(map(str, findings))
    assert "the student 0." in text
    assert "the teacher is not clearly above" in text
    assert "0.0% of the teacher's probability is on classes that belong to none" in text


def test_a_store_that_has_no_room(tree):
    tree["data"]["augment_epochs"] = 2
    tree["distill"] = {"pixel_wise": {"weight": 1}, "teacher_cache": {"disk_gb": 1e-6}}
    found = look(tree)
    assert ("error", "distill.teacher_cache.disk_gb") in levels(found)
    tree["distill"]["teacher_cache"]["disk_gb"] = 1
    found = look(tree)
    assert any("the teacher's store is at" in f.what for f in found)


def test_alone_is_a_finished_run(tree, tmp_path):
    with pytest.raises(UserError, match="--alone"):
        look(tree, alone=tmp_path)
    weights_of(espnet_c(num_classes=9, p=1, q=1), tmp_path / "run/checkpoints/student.safetensors")
    tree["teacher"]["weights"] = weights_of(
        espnet(num_classes=9, p=1, q=1), tmp_path / "teacher.safetensors"
    )
    findings = look(tree, alone=tmp_path / "run")
    assert any("the student alone (" in f.what for f in findings)


@pytest.mark.parametrize("task", ["detection", "depth"])
def test_other_tasks(tree, task):
    target, model = {"detection": ("boxes", "fcos_timm"), "depth": ("depth", "depth_timm")}[task]
    options = {"backbone": "test_resnet", "pyramid_channels": 32}
    if task == "detection":
        options.update(head_convs=1, finest_stride=4, extra_levels=0)
    tree.update(task=task, model={"name": model, "options": options})
    tree["teacher"].update(name=model, options={**options, "pyramid_channels": 64})
    tree["distill"] = {"pixel_wise": {"weight": 1}, "pair_wise": {"weight": 1}}
    tree["data"]["options"].update(target=target, height=64, width=64)
    tree["data"]["crop"] = [64, 64]
    findings = look(tree)
    # The teacher is untrained; what else is wrong would end the sequence.
    assert {f.setting for f in findings if f.level == "error"} <= {"teacher.weights"}
    quick = {"detection": "ap50", "depth": "delta1"}[task]
    assert any(f"teacher on 2 validation images: {quick}" in f.what for f in findings)
    assert any("about " in f.what for f in findings if f.area == "cost")
