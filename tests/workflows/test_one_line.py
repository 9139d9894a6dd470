"""A student, a teacher and a data set in one line: the recipe that they make, and the run that it gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import densekd
from densekd.config.load import make_config
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.models import espnet
from densekd.models.weights import save_weights
from densekd.workflows.one_line import make_recipe, setting_of
from tests.cli.helpers import write_camvid

DATA = {
    "dataset": "scenes",
    "options": {"height": 32, "width": 64},
    "train_options": {"length": 2},
    "val_options": {"length": 2},
    "batch_size": 2,
    "workers": 0,
    "crop": [32, 64],
}
SMALL = {"name": "espnet_c", "options": {"p": 1, "q": 1}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    network = {"name": "espnet", "options": {"p": 1, "q": 1}}
    out = tmp_path_factory.mktemp("runs")
    return densekd.train(
        model=network, data=DATA, steps=1, out=out, name="t", device="cpu", quiet=True
    )


def test_one_line_is_the_recipe(teacher, tmp_path, capsys):
    run = densekd.distill(
        student=SMALL,
        teacher=teacher.folder,
        data=DATA,
        steps=2,
        lr=0.02,
        out=tmp_path,
        device="cpu",
    )
    said = capsys.readouterr().out
    assert "the recipe:" in said
    assert "train: {steps: 2}" in said
    folder = RunFolder(run.folder)
    assert folder.path == tmp_path / "espnet_c-distill"
    kept = yaml.safe_load(folder.config.read_text())
    assert kept["teacher"]["weights"] == str(RunFolder(teacher.folder).student)
    assert kept["teacher"]["options"] == {"p": 1, "q": 1}
    assert {k: kept["distill"][k]["weight"] for k in ("pixel_wise", "pair_wise")} == {
        "pixel_wise": 10,
        "pair_wise": 10,
    }
    assert kept["optim"]["lr"] == 0.02
    # The recipe that was kept gives the same weights and scores.
    again = densekd.distill(folder.config, name="again", out=tmp_path, device="cpu", quiet=True)
    assert again.scores == run.scores
    assert all(
        torch.equal(value, run.student.model.state_dict()[name])
        for name, value in again.student.model.state_dict().items()
    )
    assert run.student is run.student  # read once


def test_a_shipped_data_set_brings_its_recipe(tmp_path):
    root = write_camvid(tmp_path / "camvid")
    made = make_recipe(
        None,
        {"train.steps": 5},
        student="mobilenetv2plus",
        teacher="espnet",
        data="camvid",
        root=root,
    )
    config = make_config(made.tree, "test")
    assert made.remarks == [
        "settings that you do not give are those of camvid/espnet_c_from_espnet"
    ]
    assert (config.model.name, config.teacher.name) == ("mobilenetv2plus", "espnet")
    assert config.data.root == str(root)
    assert list(config.data.crop) == [360, 480]
    assert config.teacher.options == {}
    same = make_recipe(None, {}, student="espnet_c", teacher="espnet", data="camvid")
    assert make_config(same.tree, "test").model.options == {
        "p": 2,
        "q": 8,
    }  # of the recipe with this student
    alone = make_recipe(None, {}, student="espnet", data="camvid", distil=False)
    assert alone.remarks == ["settings that you do not give are those of camvid/espnet"]
    assert "teacher" not in alone.tree
    other = make_recipe(
        None, {}, student="espnet_c", teacher="espnet", data="cityscapes/pspnet_r101"
    )
    assert make_config(other.tree, "test").data.dataset == "cityscapes"


def test_parts_replace_those_of_a_recipe(teacher):
    name = "camvid/espnet_c_from_espnet"
    made = make_recipe(
        name,
        {},
        teacher=teacher.folder,
        terms={"pixel_wise": 3, "dist": {"weight": 2, "temperature": 2}},
    )
    config = make_config(made.tree, "test")
    assert config.model.options == {"p": 2, "q": 8}
    assert config.teacher.options == {"p": 1, "q": 1}
    assert {k: t.weight for k, t in config.distill.terms.items()} == {"pixel_wise": 3, "dist": 2}
    assert config.distill.holistic is None


def test_a_lone_checkpoint_takes_the_network_of_the_recipe(tmp_path):
    torch.save(espnet(11).state_dict(), tmp_path / "t.pth")
    made = make_recipe("camvid/espnet_c_from_espnet", {}, teacher=tmp_path / "t.pth")
    assert made.tree["teacher"] == {
        "name": "espnet",
        "options": {"p": 2, "q": 8},
        "weights": str(tmp_path / "t.pth"),
    }
    with pytest.raises(UserError, match=r"does not say which network.*'name': NETWORK"):
        make_recipe(None, {}, student="espnet", teacher=tmp_path / "t.pth", data="camvid")


def test_paths_are_settings_too(teacher, tiny_tree, tmp_path):
    tiny_tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}}
    tiny_tree["data"] |= {"root": tmp_path, "val_options": {"length": 2}}
    file = RunFolder(teacher.folder).student
    config = make_config(
        {**tiny_tree, "teacher": {**tiny_tree["teacher"], "weights": file}}, "test"
    )
    assert config.data.root == str(tmp_path)
    assert config.teacher.weights == str(file)
    assert isinstance(tiny_tree["data"]["root"], Path)  # what was given is as it was


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 9, 1)

    def forward(self, images):
        return self.head(self.features(images).relu())


def test_networks_as_objects(teacher, tmp_path, capsys):
    torch.manual_seed(0)
    student, other = Net(), Net()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    given = {"data": DATA, "steps": 2, "out": tmp_path, "device": "cpu"}
    run = densekd.distill(student=student, teacher=other, name="net", **given)
    said = capsys.readouterr().out
    assert "pair_wise is left out" in said
    assert "resume=True alone" in said
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())  # copied
    assert all(p.requires_grad for p in other.parameters())
    trained = run.student.model
    assert isinstance(trained, Net)
    assert not torch.equal(trained.head.weight, before["head.weight"])
    # With the features named, pair-wise is there.
    terms = {"pixel_wise": 10, "pair_wise": {"weight": 10, "student": "features", "teacher": "b3"}}
    both = densekd.distill(
        student=student, teacher=teacher.student, terms=terms, name="both", **given
    )
    assert "distill/pair_wise" in RunFolder(both.folder).metrics.read_text()
    # The same call goes on; another network or teacher may not, and a command cannot.
    again = densekd.distill(student=student, teacher=other, name="net", resume=True, **given)
    assert again.scores == run.scores
    with pytest.raises(UserError, match=r"model\.name.*Python object"):
        densekd.distill(RunFolder(run.folder).config, name="x", out=tmp_path, device="cpu")


def test_a_run_of_objects_goes_on_with_the_same_alone(tmp_path, monkeypatch):
    import os
    import signal

    import densekd.engine.trainer as trainer

    original = trainer.seed_step

    def interrupted(seed, step, rank):
        original(seed, step, rank)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    torch.manual_seed(0)
    student, teacher, other = Net(), Net(), Net()
    given = {"data": DATA, "steps": 3, "out": tmp_path, "device": "cpu", "quiet": True}
    whole = densekd.distill(student=student, teacher=teacher, name="whole", **given)
    monkeypatch.setattr(trainer, "seed_step", interrupted)
    stopped = densekd.distill(student=student, teacher=teacher, name="r", **given)
    assert not stopped.finished
    monkeypatch.undo()
    with pytest.raises(UserError, match="weights of the teacher"):
        densekd.distill(student=student, teacher=other, name="r", resume=True, **given)
    assert (
        densekd.distill(student=student, teacher=teacher, name="r", resume=True, **given).scores
        == whole.scores
    )


def test_keywords_are_settings():
    names = {"steps": "train.steps", "lr": "optim.lr", "batch_size": "data.batch_size", "seed": "seed", "task": "task",
             "teacher__classes": "teacher.classes", "train.steps": "train.steps", "fold_norms": "teacher.fold_norms",
             "task__aux_weight": "task.aux_weight"}  # fmt: skip
    assert {key: setting_of(key) for key in names} == names
    with pytest.raises(UserError, match=r"model\.weights, teacher\.weights.*model__weights="):
        setting_of("weights")
    with pytest.raises(
        UserError, match=r"stepss= is no setting; did you mean .*'\? The settings of"
    ):
        setting_of("stepss")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "student= and data= missing"),
        ({"student": "espnet"}, "data= missing"),
        ({"student": "espnett", "data": "camvid"}, "did you mean 'espnet'"),
        ({"student": "espnet", "teacher": "runs/teacher.safetensors", "data": "camvid"}, "no weights file"),
        ({"student": "espnet", "data": "camvit"}, "did you mean 'camvid'"),
        ({"student": "espnet", "data": "camvid", "terms": {"pixel_wise": "ten"}}, "give its weight"),
        ({"student": "espnet", "teacher": "espnet", "data": "camvid", "stepss": 1}, "is no setting"),
    ],
)  # fmt: skip
def test_mistakes_are_answered(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        densekd.distill(**given)
    assert not list(tmp_path.iterdir())


def test_one_teacher_replaces_several_and_may_be_an_exported_file(tmp_path):
    several = {"a": {"name": "espnet", "weights": "a.pth"}, "b": {"name": "espnet"}}
    tree = {"model": SMALL, "data": DATA, "teachers": several}
    tree["distill"] = {"pixel_wise": {"weight": 3}}
    for suffix in (".onnx", ".xml", ".pt2"):
        file = tmp_path / f"net{suffix}"
        file.write_bytes(b"a program")
        config = make_config(make_recipe(tree, {}, teacher=file).tree, "test")
        assert config.teachers is None
        assert (config.teacher.name, config.teacher.options) == ("exported", {"path": str(file)})
        config = make_config({**tree, "teachers": {**several, "c": str(file)}}, "test")
        assert config.teachers["c"].options == {"path": str(file)}
        assert config.teachers["a"].name == "espnet"


def test_the_one_line_works_with_a_program(tmp_path, capsys):
    torch.manual_seed(0)
    script = torch.jit.trace(nn.Conv2d(3, 9, 3, padding=1), torch.rand(1, 3, 8, 8))
    file = tmp_path / "teacher.pt"
    script.save(str(file))
    run = densekd.distill(
        student=SMALL, teacher=file, data=DATA, steps=1, workers=0, out=tmp_path, device="cpu"
    )
    assert run.step == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "pair_wise is left out: an exported teacher" in said
    assert "it teaches by pixel_wise" in said
    # Terms on features alone: the prediction stands in. A term that names an output stays, and so does one asked for.
    tree = {"model": SMALL, "data": DATA, "distill": {"fitnet": {"weight": 2}}}
    assert make_recipe(tree, {}, teacher=file).tree["distill"] == {"pixel_wise": {"weight": 10}}
    tree["distill"]["fitnet"]["teacher"] = "wide"
    assert list(make_recipe(tree, {}, teacher=file).tree["distill"]) == ["fitnet"]
    asked = make_recipe(tree, {}, teacher=file, terms={"pair_wise": 1}).tree["distill"]
    assert list(asked) == ["pair_wise"]


def test_where_the_prediction_is_comes_with_the_weights(tmp_path):
    about = {
        "task": "segmentation",
        "model": {"name": "espnet", "options": {}, "in_channels": 3, "prediction": "classifier"},
        "input": {}, "classes": ["a"], "arguments": {},
    }  # fmt: skip
    file = tmp_path / "net.safetensors"
    save_weights(nn.Conv2d(1, 1, 1), file, {"densekd": json.dumps(about)})
    made = make_recipe(None, {}, student=file, teacher=file, data="camvid")
    assert made.tree["model"]["prediction"] == made.tree["teacher"]["prediction"] == "classifier"
