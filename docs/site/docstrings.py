"""What docstrings have of reStructuredText, as Markdown and MathML: formulas and simple tables. A Griffe extension."""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r"^\.\. math:: (?P<latex>.*(?:\n[ ]+\S.*)*)", re.M)
INLINE = re.compile(r":math:`(?P<latex>[^`]+)`")
TABLE = re.compile(
    r"^(?P<rule>=+(?: =+)+)\n(?P<head>.*)\n(?P=rule)\n(?P<rows>(?:.*\n)*?)(?P=rule)$", re.M
)


def table(match: re.Match[str]) -> str:
    """A table whose columns stand under its rules; a row without a first cell continues the one before."""
    columns = [(m.start(), m.end()) for m in re.finditer("=+", match["rule"])]
    columns[-1] = (columns[-1][0], 1000)
    lines = [match["head"], *match["rows"].splitlines()]
    rows: list[list[str]] = []
    for line in lines:
        cells = [
            line[start:end].strip().replace("|", r"\|").replace(r"\\|", r"\|")
            for start, end in columns
        ]
        if cells[0] or not rows:
            rows.append(cells)
        else:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mathml(latex: str, display: str = "inline") -> str:
    r"""A formula; the sizes of brackets (``\\Big``) are left to the browser."""
    return convert(re.sub(r"\\[bB]ig[lr]?(?![a-z])", "", " ".join(latex.split())), display=display)


def markdown(text: str) -> str:
    text = FORMULA.sub(lambda m: mathml(m["latex"], "block"), text)
    text = INLINE.sub(lambda m: mathml(m["latex"]), text)
    return TABLE.sub(table, text)


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
