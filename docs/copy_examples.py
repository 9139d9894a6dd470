"""Copies files of examples/ into the pages that show them, after each line ``<!-- file: examples/NAME -->``.

    python docs/copy_examples.py

A test fails while a page shows another text than the file.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- file: (?P<path>\S+) -->\n+```(?P<language>\w+)\n.*?^```$", re.M | re.S)


def filled(page: str) -> str:
    """The page's text with every shown file as it is now."""

    def block(match: re.Match[str]) -> str:
        text = (ROOT / match["path"]).read_text(encoding="utf-8")
        return f"<!-- file: {match['path']} -->\n\n```{match['language']}\n{text}```"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    for page in sorted((ROOT / "docs").glob("*.md")):
        old = page.read_text(encoding="utf-8")
        if filled(old) != old:
            page.write_text(filled(old), encoding="utf-8")
            print(page)
