"""What `compare` says: its lines for people, and the table of scores by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from densekd.errors import UserError
from densekd.tasks.base import Column
from densekd.workflows.load import LoadedModel

PER_CLASS = ("iou", "per_class")  # segmentation's and detection's scores by class, as fractions


def score_text(column: Column, value: float) -> str:
    """``mIoU 83.25 %``: the heading without its unit, then the value with it."""
    heading, _, unit = column.heading.partition(" (")
    return (
        f"{heading} {value * column.factor:.{column.decimals}f} {unit.removesuffix(')')}".rstrip()
    )


def class_table(result: dict[str, Any], models: Sequence[LoadedModel]) -> str:
    """Markdown: a row a class and the main scores last, a column a network, and the change from first to last.

    Raises:
        UserError: no truth is known.
    """
    if not result["frames_with_truth"]:
        raise UserError(
            "--table: no frame has truth; give --recipe with its data root, or --labels"
        )
    names = [row["name"] for row in result["models"]]
    scores = [row["scores"] for row in result["models"]]
    key = next((k for k in PER_CLASS if k in scores[0]), None)
    rows = [(name, [s[key][name] for s in scores], 100.0, 2) for name in scores[0].get(key, {})]
    for column in models[0].task.columns:
        values = [s.get(column.key) for s in scores]
        rows.append((column.heading.removesuffix(" (%)"), values, column.factor, column.decimals))
    more = len(names) > 1
    header = ["", *names, *(["change"] if more else [])]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for name, values, factor, decimals in rows:
        known = all(v is not None for v in (values[0], values[-1]))
        cells = ["-" if v is None else f"{factor * v:.{decimals}f}" for v in values]
        if more:
            change = factor * (values[-1] - values[0]) if known else 0.0
            cells.append(f"{change:+.{decimals}f}" if known else "-")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def as_text(result: dict[str, Any], models: Sequence[LoadedModel]) -> str:
    """A few lines for people."""
    column = models[0].task.columns[0]
    lines = []
    width = max(len(row["name"]) for row in result["models"])
    for row in result["models"]:
        value = (row["scores"] or {}).get(column.key)
        score = "" if value is None else f"  {score_text(column, value)}"
        note = f"  ({row['note']})" if row["note"] else ""
        lines.append(f"{row['name']:<{width}}  {row['milliseconds']:.3g} ms a frame{score}{note}")
    with_truth = (
        f", {result['frames_with_truth']} with truth" if result["frames_with_truth"] else ""
    )
    lines.append(
        f"{result['frames']} frames{with_truth} in {result['file']} ({result['bytes'] / 1000:.0f} kB)"
    )
    return "\n".join(lines)
