"""`config validate` finds what a run would stumble over, without data and weights."""

import pytest

from densekd.config.load import make_config
from densekd.config.tree import apply_overrides
from densekd.errors import UserError
from densekd.workflows.validate import validate


def recipe(**overrides):
    tree = {
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "teacher": {"name": "espnet", "options": {"p": 1, "q": 1}},
        "data": {"dataset": "camvid", "crop": [32, 48]},
        "distill": {"pixel_wise": {"weight": 1}, "pair_wise": {"weight": 2}, "holistic": {"channels": 8}},
    }  # fmt: skip
    apply_overrides(tree, {key.replace("__", "."): value for key, value in overrides.items()})
    return make_config(tree, "here")


def test_a_line_a_network_and_a_term():
    lines = validate(recipe(teacher__weights="/no/such/file.pth")).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "model", "teacher", "pixel_wise", "pair_wise", "holistic", "valid",
    ]  # fmt: skip
    assert lines[0].endswith("at 32x48 with 11 classes")


def test_a_recipe_without_teacher_is_a_network():
    lines = validate(recipe(teacher=None, distill={})).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["model", "valid"]


@pytest.mark.parametrize(
    ("overrides", "classes"),
    [
        ({"data.dataset": "cityscapes"}, 19),
        ({"data.dataset": "cityscapes", "data.options": {"classes": ["road", "car"]}}, 2),
        ({"data.dataset": "scenes"}, 9),
        ({"data.dataset": "voc"}, 21),
        ({"data.dataset": "folder"}, 19),
        ({"data.dataset": "folder", "task.class_weights": [1.0, 2.0, 3.0]}, 3),
    ],
)
def test_classes_are_those_of_the_data_set_where_it_says_so(overrides, classes):
    config = recipe(teacher=None, distill={}, **overrides)
    assert f"with {classes} classes" in validate(config)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("distill.pair_wise.student", "no.such.module", ["no.such.module", "near it"]),
        ("distill.pair_wise.teacher", "nonsense", ["nonsense"]),
        ("distill.pair_wise.granularty", 2, ["distill.pair_wise", "granularty"]),
        ("train.best", "mAP", ["train.best", "miou"]),
        ("optim.groups", [{"prefix": "bakbone."}], ["optim.groups", "bakbone."]),
        ("data.dataset", "camvit", ["data.dataset", "camvid"]),
        ("data.options", {"lables": 1}, ["data.options.lables", "unknown option"]),
        ("data.val_options", {"split": "x"}, ["data.val_options.split", "unknown option"]),
        ("task.class_weights", [1.0, 2.0], ["class_weights has 2 values for 11 classes"]),
        ("model.options", {"pp": 1}, ["model.options.pp"]),
        ("teacher.name", "espnot", ["teacher.name", "espnet"]),
        ("teacher", None, ["teacher", "missing"]),
        ("distill", {}, ["no term given"]),
        ("teacher.in_channels", 4, ["in_channels"]),
    ],
)
def test_what_a_run_would_stumble_over_is_found(key, value, words):
    with pytest.raises(UserError) as caught:
        validate(recipe(**{key: value}))
    for word in words:
        assert word in str(caught.value)


def test_a_network_for_its_crop_alone_is_valid_at_that_crop(tmp_path, monkeypatch):
    (tmp_path / "fixed_size.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Conv2d):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(3, num_classes, 1)\n"
        "    def forward(self, x):\n"
        "        if x.shape[-1] != 140:\n"
        "            raise ValueError('not of my width')\n"
        "        return super().forward(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = {"teacher": None, "distill": {}, "model": {"name": "fixed_size.Net"}}
    assert validate(recipe(**own, data__crop=[16, 140])).endswith("valid")
    with pytest.raises(UserError, match=r"16x144.*not of my width"):
        validate(recipe(**own, data__crop=[16, 144]))
