"""The run folder: held by one process, and never another's."""

import json

import pytest

from densekd.engine.folder import RunFolder
from densekd.errors import UserError


def test_open_writes_what_the_run_is(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    assert not folder.occupied()
    with folder.open("seed: 0\n", "densekd train x", resume=False):
        assert folder.config.read_text() == "seed: 0\n"
        assert json.loads(folder.environment.read_text())["versions"]["torch"]
    with folder.open("ignored", "densekd train x --resume", resume=True):
        assert folder.config.read_text() == "seed: 0\n"
    assert folder.command.read_text().splitlines() == [
        "densekd train x",
        "densekd train x --resume",
    ]


def test_a_folder_is_held_against_a_second_process(tmp_path):
    with RunFolder(tmp_path / "r").open("", "first", resume=False):
        second = RunFolder(tmp_path / "r").open("", "second", resume=True)
        with pytest.raises(UserError, match="in use by another process"):
            second.__enter__()
    with RunFolder(tmp_path / "r").open("", "third", resume=True):
        pass
    assert (tmp_path / "r" / "command.txt").read_text() == "first\nthird\n"


@pytest.mark.parametrize(
    ("resume", "changed", "words"),
    [
        (False, [], "already exists"),
        (True, ["optim.lr: 1 -> 2"], "optim.lr: 1 -> 2"),
    ],
)
def test_what_open_could_not_go_on_with_fails_early(tmp_path, resume, changed, words):
    folder = RunFolder(tmp_path)
    folder.config.write_text("seed: 0")
    with pytest.raises(UserError, match=words):
        folder.check(resume=resume, changed=changed)
    folder.config.unlink()
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(UserError, match=r"already exists|no config\.yaml"):
        folder.check(resume=resume, changed=[])


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "r").write_text("a file")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"already exists|not a run folder"):
            RunFolder(tmp_path / "r").check(resume=resume, changed=[])


def test_a_start_that_was_killed_before_its_config_leaves_a_free_folder(tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.checkpoints.mkdir(parents=True)
    folder.lock.touch()
    (folder.path / ".config.yaml.1-ab.partial").write_text("mod")
    assert not folder.occupied()
    with folder.open("model: {}\n", "densekd train", resume=True):
        assert folder.occupied()
        assert folder.config.read_text() == "model: {}\n"
