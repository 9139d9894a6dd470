from __future__ import annotations

import numpy as np
import pytest

from densekd.build.data import build_reader
from densekd.config.load import make_config
from densekd.config.schema import Data
from densekd.data import Folder, Part, TrainLoader, held_out
from densekd.errors import UserError
from tests.data.conftest import make_image, make_labels


class Named:
    """A set of which the names alone are asked."""

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return self.names[index]


NAMES = [f"train/drive{d}/{i:04d}.png" for d in range(40) for i in range(5)]


def sides(names, *args):
    train, val = held_out(Named(names), *args)
    assert sorted(train + val) == list(range(len(names)))
    return {names[i] for i in train}, {names[i] for i in val}


@pytest.mark.parametrize("groups", ["folder", r"drive(\d+)/", r"drive\d+/"])
def test_no_drive_stands_on_both_sides(groups):
    train, val = sides(NAMES, 0.25, groups)
    drives = [{name.split("/")[1] for name in side} for side in (train, val)]
    assert not drives[0] & drives[1]
    assert 3 <= len(drives[1]) <= 17  # 10 of 40 expected; four standard deviations are 11


def test_added_files_move_no_other():
    train, val = sides(NAMES[:100], 0.25, "folder")
    more = [*reversed(NAMES), *(f"train/drive99/{i}.png" for i in range(9))]
    train_later, val_later = sides(more, 0.25, "folder")
    assert train <= train_later
    assert val <= val_later
    assert sides(NAMES, 0.25, "folder", 1) != sides(NAMES, 0.25, "folder")


def test_the_share_is_about_the_fraction():
    names = [f"{i}.png" for i in range(4000)]
    _, val = sides(names, 0.1)
    assert abs(len(val) - 400) < 80  # four standard deviations of a binomial
    # From `b2sum -l 64` of "0:0.png" ... "0:19.png": a later version must choose the same.
    assert sides(names[:20], 0.2)[1] == {"7.png", "11.png", "15.png", "0.png", "4.png"}


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ("drive(", "`groups` is 'drive.', which is no regular expression"),
        ("road", "does not fit 200 of 200 names: train/drive0/0000.png"),
        ("train", r"`fraction` 0.25 of 1 groups .train. leaves no image"),
    ],
)
def test_bad_groups(groups, words):
    with pytest.raises(UserError, match=words):
        held_out(Named(NAMES), 0.25, groups)


@pytest.fixture
def root(tmp_path):
    for drive in range(12):
        for i in range(2):
            make_image(tmp_path / f"images/d{drive:02d}/{i}.png", seed=2 * drive + i)
            make_labels(tmp_path / f"masks/d{drive:02d}/{i}.png", [0, 1, 255])
    return tmp_path


def data(root, **more):
    options = {"classes": ["a", "b"]}
    return Data(
        dataset="folder", root=str(root), train_split="all", val_split="all", options=options,
        val_fraction=0.4, val_groups="folder", **more,
    )  # fmt: skip


def names(reader):
    return [reader.name(i) for i in range(len(reader))]


def test_a_recipe_holds_out(root):
    settings = data(root)
    train = build_reader(settings, "all", training=True)
    val = build_reader(settings, "all", training=False)
    assert isinstance(train, Part)
    drives = [{name.split("/")[1] for name in names(part)} for part in (train, val)]
    assert not drives[0] & drives[1]
    assert len(drives[0] | drives[1]) == 12
    whole = Folder(root, "all", classes=["a", "b"])
    place = names(whole).index(val.name(0))
    np.testing.assert_array_equal(val.read(0).image, whole.read(place).image)
    assert val.paths(0) == whole.paths(place)
    batch = next(iter(TrainLoader(train, batch_size=2, workers=0)))
    assert batch.images.shape[0] == 2


def test_few_labels_are_those_of_the_training_part(root):
    few = build_reader(data(root, train_options={"labelled": 3}), "all", training=True)
    assert len(few) == 3
    settings = data(root, train_options={"labelled": 3}, allow_unlabelled=True)
    mixed = build_reader(settings, "all", training=True)
    assert sum(mixed.read(i).target is not None for i in range(len(mixed))) == 3
    assert len(mixed) == len(build_reader(data(root), "all", training=True))
    with pytest.raises(UserError, match=r"data\.train_options\.labelled is 99; expected 1 to "):
        build_reader(data(root, train_options={"labelled": 99}), "all", training=True)


def test_settings_say_what_is_wrong(root, tiny_tree):
    settings = data(root)
    settings.val_groups = "masks"
    with pytest.raises(UserError, match=r"data\.val_groups 'masks' does not fit"):
        build_reader(settings, "all", training=True)
    tiny_tree["data"]["val_groups"] = "folder"
    with pytest.raises(UserError, match=r"data\.val_groups: needs data\.val_fraction"):
        make_config(tiny_tree, "test")
