from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from densekd.data import distinct_colours
from densekd.data.base import sources_of


def test_distinct_colours_are_vocs():
    colours = distinct_colours(256)
    assert colours[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert len(set(colours)) == 256


def test_the_files_of_a_sample():
    """What the reader lists; else its paths; else none."""
    paths = lambda index: (Path("a.png"), None)  # noqa: E731
    assert sources_of(SimpleNamespace(paths=paths), 0) == [Path("a.png")]
    assert sources_of(SimpleNamespace(paths=paths, sources=lambda index: []), 0) == []
    assert sources_of(SimpleNamespace(), 0) == []
