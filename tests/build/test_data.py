"""A command's user is told settings where a library's user is told arguments."""

from __future__ import annotations

import pytest

from densekd.build.data import build_reader, check_reader, loader_processes
from densekd.config.load import make_config
from densekd.config.schema import Data
from densekd.data import SceneSet
from densekd.errors import DataError, UserError


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("camvid", r"Check data\.root"),
        ("folder", r"set data\.options\.classes"),
        ("coco", r"Check data\.root, or set data\.options\.annotations"),
    ],
)
def test_what_a_reader_misses_is_a_setting(tmp_path, dataset, words):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=words):
        build_reader(Data(dataset=dataset, root=str(tmp_path)), "train", training=True)


def test_task_and_data_set_must_have_one_kind_of_truth(tiny_tree):
    config = make_config(tiny_tree, "test")
    assert check_reader(SceneSet(length=2), config, "train") == []
    message = r"task is segmentation, which takes class maps, .* gives depth maps; set one to fit"
    with pytest.raises(UserError, match=message):
        check_reader(SceneSet(length=2, target="depth"), config, "train")


def test_no_more_loaders_than_cores(tiny_tree, monkeypatch):
    monkeypatch.setattr("densekd.build.data.available_cores", lambda: 2)
    for workers, used in ((0, 0), (1, 1), (2, 2), (16, 2)):
        tiny_tree["data"]["workers"] = workers
        assert loader_processes(make_config(tiny_tree, "test").data) == used
