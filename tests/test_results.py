"""The numbers in the pages are those under results/."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_as_the_files_have_it(tables):
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.BLOCK.search(text), f"{page} has no table"
        assert tables.filled(text) == text, f"run python docs/make_tables.py: {page} is out of date"


def test_the_spread_is_over_seeds(tables):
    assert tables.spread([1.0], 1) == "1.0"
    assert tables.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"


def test_a_changed_number_is_noticed(tables):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    number = re.search(r"\| student alone \| (\d+\.\d+)", text)
    assert number is not None
    changed = text[: number.start(1)] + "99.99" + text[number.end(1) :]
    assert tables.filled(changed) == text
