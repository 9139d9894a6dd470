"""Scenes on disk are complete or not there."""

import pytest

from densekd.errors import UserError
from densekd.workflows import synthesize as module

SMALL = {"splits": {"train": 2}, "seed": 0, "height": 32, "width": 64, "extras": False}


def test_an_interrupted_call_is_made_anew(tmp_path, monkeypatch):
    original = module.write_cityscapes

    def stop(root, **options):
        (root / "leftImg8bit").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_cityscapes", stop)
    with pytest.raises(KeyboardInterrupt):
        module.synthesize(tmp_path / "s", **SMALL)
    assert not (tmp_path / "s").exists()
    monkeypatch.setattr(module, "write_cityscapes", original)
    module.synthesize(tmp_path / "s", **SMALL)
    assert len(list((tmp_path / "s" / "leftImg8bit").rglob("*.png"))) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["s", "s.partial"])
def test_a_users_folder_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=name):
        module.synthesize(tmp_path / "s", **SMALL)
    assert (tmp_path / name / "mine.txt").exists()
