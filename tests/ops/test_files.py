from __future__ import annotations

from pathlib import Path

from densekd.ops.files import cache_folder


def test_own_variable_then_xdg_then_home(monkeypatch) -> None:
    monkeypatch.setenv("DENSEKD_CACHE", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder("images") == Path("/a/b/images")
    monkeypatch.delenv("DENSEKD_CACHE")
    assert cache_folder("images") == Path("/x/densekd/images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("images") == Path.home() / ".cache" / "densekd" / "images"
