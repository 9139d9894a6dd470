"""The tables and sentences of a report, from rows: plain values that the templates write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from densekd.config.tree import flatten
from densekd.report import curves
from densekd.report.records import RunRecord, is_number
from densekd.report.rows import GUESS, Headline, Row, class_key, mean_std, number
from densekd.tasks import Column

FACTORS = {"iou": 100, "per_class": 100}  # of scores by class, which are fractions
# Settings in which runs of a table differ by their nature.
UNREMARKABLE = ("seed", "note")


def run_title(row: Row, run: RunRecord) -> str:
    return row.title if len(row.runs) == 1 else f"{row.title}, seed {run.seed}"


def cards(head: Headline, rows: Sequence[Row], column: Column) -> list[dict[str, Any]]:
    """The numbers at the top; without a distilled run, the rows' own scores."""
    chosen: list[tuple[str, Row | None]] = [
        ("Teacher", head.teacher),
        ("Student alone", head.alone),
        ("Student, distilled", head.distilled),
    ]
    if head.distilled is None:
        others = [row for row in rows if row.role != GUESS][:4]
        chosen = [*((row.title, row) for row in others)]
    found = []
    for label, row in chosen:
        if row is None:
            continue
        detail = [] if row.title.lower() == label.lower() else [row.title]
        if row.parameters:
            detail.append(f"{row.parameters / 1e6:.3g} M parameters")
        if len(row.scores) > 1:
            detail.append(f"{len(row.scores)} seeds")
        found.append(
            {
                "label": label,
                "value": number(row.mean(column.key), column),
                "spread": ""
                if row.std(column.key) is None
                else f"± {number(row.std(column.key), column)}",
                "detail": ", ".join(detail),
                "main": row is head.distilled,
            }
        )
    return found


def verdict(head: Headline, column: Column, smaller: bool) -> str:
    """The headline's numbers as sentences, with what they can bear."""
    if head.distilled is None:
        return "No run of these has a teacher: give a distilled run, and the student alone, to see what a teacher adds."
    if head.distilled.mean(column.key) is None:
        return "The distilled student has not been scored yet."
    if head.alone is None or head.gain is None:
        return "Give the run of the student alone too, and this page says what the teacher added."
    unit = " points" if column.factor == 100 else ""
    less = "lower" if smaller else "higher"
    if head.gain < 0:
        less = "higher" if smaller else "lower"
    size = number(abs(head.gain), column)
    text = f"With the teacher, {column.heading.removesuffix(' (%)')} is {size}{unit} {less} than without"
    if head.pairs > 1:
        text += f" (mean of {head.pairs} pairs of seeds, standard deviation {number(head.gain_std, column)})"
    text += "."
    if head.pairs > 1 and head.gain_std is not None and abs(head.gain) <= 2 * head.gain_std:
        text += " That is within twice its spread: more seeds are needed to tell."
    if head.pairs <= 1:
        text += " It is the difference of single runs: other seeds would give others."
    if head.share is not None and head.share < 0:
        text += " The distilled student is farther from its teacher than the student alone is."
    elif head.share is not None:
        text += f" The distilled student closes {100 * head.share:.0f} % of the gap to its teacher."
    elif head.teacher is not None and head.teacher.mean(column.key) is not None:
        text += " The teacher is not better than the student alone, so there is no gap to close."
    return text


def row_values(row: Row, columns: Sequence[Column], head: Headline) -> dict[str, Any]:
    seconds = [
        r.result["seconds"] for r in row.runs if r.result and is_number(r.result.get("seconds"))
    ]
    unfinished = [run for run in row.runs if run.result is None]
    return {
        "title": row.title,
        "role": row.role,
        "main": row is head.distilled,
        "cells": [mean_std(row, column) for column in columns],
        "seeds": [
            (seed, number(scores.get(columns[0].key), columns[0]))
            for seed, scores in zip(row.seeds, row.scores, strict=True)
        ]
        if len(row.scores) > 1
        else [],
        "parameters": "" if not row.parameters else f"{row.parameters / 1e6:.3f}",
        "macs": "" if not row.macs else f"{row.macs / 1e9:.3f}",
        "minutes": "" if not seconds else f"{sum(seconds) / len(seconds) / 60:.1f}",
        "unfinished": ", ".join(
            f"{'seed ' + str(run.seed) + ' ' if len(row.runs) > 1 else ''}at step {run.done} of {run.steps}"
            for run in unfinished
        ),
    }


def last_values(rows: Sequence[Row]) -> dict[str, Any]:
    """The loss terms at the last logged step: what the curves end with, as a table."""
    runs = [(run_title(row, run), run) for row in rows for run in row.runs]
    keys = curves.keys_of([run for _, run in runs], "")
    keys = [k for k in keys if k == "loss" or "/" in k]
    table = []
    for title, run in runs:
        ends = [p[-1][1] if (p := curves.points(run.metrics, k)) else None for k in keys]
        if any(value is not None for value in ends):
            table.append((title, ["–" if v is None else curves.short(v) for v in ends]))
    return {"keys": keys, "rows": table}


def class_table(rows: Sequence[Row], head: Headline, smaller: bool) -> dict[str, Any] | None:
    """Scores by class of teacher, student alone and distilled, with the difference of the last two."""
    key = class_key(rows)
    if key is None:
        return None
    chosen = [r for r in (head.teacher, head.alone, head.distilled) if r is not None]
    if head.distilled is None:
        chosen = [row for row in rows if row.runs]
    tables = [(row, row.by_class(key)) for row in chosen]
    tables = [(row, table) for row, table in tables if table]
    names = list(dict.fromkeys(name for _, table in tables for name in table))
    by_role = {row.role: table for row, table in tables}
    before, after = by_role.get("alone"), by_role.get("distilled")
    factor = FACTORS.get(key, 1)
    differences: dict[str, float | None] = {}
    lines: list[dict[str, Any]] = []
    for name in names:
        difference = None
        if before is not None and after is not None:
            one, two = before.get(name), after.get(name)
            difference = None if one is None or two is None else factor * (two - one)
        differences[name] = difference
        cells = [t.get(name) for _, t in tables]
        lines.append(
            {
                "name": name,
                "cells": ["–" if v is None else f"{factor * v:.1f}" for v in cells],
                "text": "–" if difference is None else f"{difference:+.1f}".replace("-", "−"),
            }
        )
    widest = max((abs(d or 0.0) for d in differences.values()), default=0.0) or 1.0
    for line in lines:
        size = differences[line["name"]] or 0.0
        line |= {"width": round(50 * abs(size) / widest, 1), "up": size >= 0}
    return {
        "heading": {"iou": "IoU by class (%)", "per_class": "AP by class (%)"}.get(key, key),
        "titles": [row.title for row, _ in tables],
        "rows": lines,
        "differs": before is not None and after is not None,
    }


def score_table(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    """Every plain number among the scores."""
    known = {column.key: column for column in columns}
    scored = [row for row in rows if row.scores]
    keys = list(
        dict.fromkeys(k for r in scored for s in r.scores for k, v in s.items() if is_number(v))
    )
    table = []
    for key in keys:
        column = known.get(key, Column(key, key, 1, 4))
        values = [v for row in scored for v in row.values(key)]
        if key not in known and all(v == int(v) for v in values):
            column = column._replace(decimals=0)
        table.append((column.heading, [mean_std(row, column) for row in scored]))
    return {"titles": [row.title for row in scored], "rows": table}


def settings_table(rows: Sequence[Row]) -> dict[str, Any]:
    """The settings in which rows differ, and all others once."""
    firsts = [(row.title, flatten(row.runs[0].tree)) for row in rows]
    keys = list(dict.fromkeys(key for _, settings in firsts for key in settings))
    sections = {key.rpartition(".")[0] for key in keys}
    different, same = [], []
    for key in keys:
        if key in sections:  # empty in one row and full in another: the keys inside say more
            continue
        texts = [_value(s[key]) if key in s else "" for _, s in firsts]
        # A row without a teacher has none of its settings: only the others are compared.
        known = [t for t in texts if t] if key.startswith("teacher.") else texts
        if len(set(known)) > 1 and key not in UNREMARKABLE:
            counts = {text: known.count(text) for text in known}
            usual = max(counts, key=lambda text: counts[text])
            different.append((key, [(text, text in counts and text != usual) for text in texts]))
        else:
            same.append((key, next((text for text in texts if text), "")))
    return {"titles": [title for title, _ in firsts], "different": different, "same": same}


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return "{}" if value == {} else str(value)


def environments(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each different environment once, with the runs that it was of."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        for run in row.runs:
            if not run.environment:
                continue
            pairs = [
                (k.removeprefix("versions."), _value(v))
                for k, v in flatten(run.environment).items()
                if v is not None
            ]
            entry = found.setdefault(str(pairs), {"pairs": pairs, "runs": []})
            entry["runs"].append(run_title(row, run))
    return list(found.values())
