from __future__ import annotations

from pathlib import Path

import pytest

from densekd.errors import UserError
from densekd.ops.files import cache_folder, new_folder


def test_own_variable_then_xdg_then_home(monkeypatch) -> None:
    monkeypatch.setenv("DENSEKD_CACHE", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder("images") == Path("/a/b/images")
    monkeypatch.delenv("DENSEKD_CACHE")
    assert cache_folder("images") == Path("/x/densekd/images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("images") == Path.home() / ".cache" / "densekd" / "images"


def test_a_folder_appears_whole_or_not_at_all(tmp_path) -> None:
    with new_folder(tmp_path / "a" / "b") as place:
        (place / "x").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b" / "x").read_text() == "x"
    with pytest.raises(UserError, match="exists"), new_folder(tmp_path / "a" / "b") as place:
        (place / "y").write_text("y")
    with pytest.raises(KeyError), new_folder(tmp_path / "a" / "c") as place:
        raise KeyError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x"]
