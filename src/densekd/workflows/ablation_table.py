"""The table of an ablation, as far as it has been run."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from densekd.build.data import build_reader, input_size
from densekd.build.task import build_task
from densekd.config.schema import Config
from densekd.engine.folder import RunFolder
from densekd.ops.files import read_object, write_text
from densekd.report.records import read_result
from densekd.tasks import Column, Task
from densekd.workflows.variants import Variant, few_labels
from densekd.workflows.verdict import REMEDY, is_above

CONSTANT = "constant_guess.json"


def task_and_size(config: Config) -> tuple[Task, tuple[int, int]]:
    reader = build_reader(config.data, config.data.train_split, training=True)
    return build_task(config, reader), input_size(config, reader)


def write_table(
    config: Config,
    folder: Path,
    variants: list[Variant],
    seeds: int,
    teacher: dict[str, Any] | None,
) -> str:
    """The Markdown table of what came out; also written to table.md and results.json."""
    task, size = task_and_size(config)
    rows: list[dict[str, Any]] = []

    def add(title: str, scores: list[dict[str, Any]], **more: Any) -> None:
        values = {column.key: [s.get(column.key) for s in scores] for column in task.columns}
        rows.append({"title": title, "scores": values, **more})

    if (folder / CONSTANT).exists():
        guess = read_object(folder / CONSTANT)
        add("constant guess", [guess])
    for where, section in config.every_teacher.items():
        if teacher is None:
            break
        name = where.removeprefix("teachers.")
        row = teacher["rows"][name] if "rows" in teacher else teacher
        sizes = {k: row[k] for k in ("parameters", "macs")}
        whose = f"teacher {name}" if config.teachers else "teacher"
        add(f"{whose} ({section.name})", [row["scores"]], **sizes)
    for variant in variants:
        results = []
        for seed in range(config.seed, config.seed + seeds):
            path = RunFolder(folder / variant.key / f"seed{seed}").result
            found = read_result(path, needs=("scores", "parameters", "macs", "seconds"))
            if found is not None:
                results.append(found)
        if results:
            sizes = {k: results[0][k] for k in ("parameters", "macs")}
            seconds = [r["seconds"] for r in results]
            add(variant.title, [r["scores"] for r in results], **sizes, seconds=seconds)
    headings = [f"{c.heading} on {config.data.val_split}" for c in task.columns[:1]]
    headings += [c.heading for c in task.columns[1:]]
    lines = [
        f"| network | {' | '.join(headings)} | parameters (M) | MACs (G, {size[0]}×{size[1]}) |",
        f"| --- |{' ---: |' * (len(headings) + 2)}",
    ]
    for row in rows:
        cells = [_mean_std(row["scores"][c.key], c) for c in task.columns]
        cells += (
            [
                f"{row['parameters'] / 1e6:.3f}",
                "–" if row["macs"] is None else f"{row['macs'] / 1e9:.3f}",
            ]
            if "parameters" in row
            else ["", ""]
        )
        lines.append(f"| {row['title']}{_count(row, seeds)} | {' | '.join(cells)} |")
    run = {r["title"] for r in rows}
    empty = " |" * (len(headings) + 2)
    lines += [f"| {v.title} (not run yet) |{empty}" for v in variants if v.title not in run]
    few = ", ".join(f"{key}: {value}" for key, value in few_labels(config).items())
    note = f" Labels: {few}; distilled students see the other training images too." if few else ""
    if config.data.unlabelled is not None:
        note += f" Distilled students see {config.data.unlabelled.batch_size} unlabelled images more in a step."
    note += f" Note: {config.note}." if config.note else ""
    lines += [
        "",
        f"Student {config.model.name}, {config.train.steps} steps of {config.data.batch_size} images, last weights, "
        f"{seeds} seed{'s' if seeds > 1 else ''}{' (mean ± std)' if seeds > 1 else ''}.{note}",
    ]
    remark = _teacher_remark(rows, task, variants)
    if remark:
        lines += ["", remark]
    text = "\n".join(lines) + "\n"
    write_text(folder / "table.md", text)
    write_text(folder / "results.json", json.dumps(rows, indent=2) + "\n")
    return text


def _teacher_remark(rows: list[dict[str, Any]], task: Task, variants: list[Variant]) -> str:
    """That the teacher is not clearly above the student alone, which its row then says too; else empty.

    Of several teachers the best counts. Several rows may be students alone: the first is the one that the others are
    compared with.
    """
    column = task.columns[0]
    alone = [v.title for v in variants if not v.distil]
    smaller = column.key in task.smaller_is_better
    teachers = [row for row in rows if "parameters" in row and "seconds" not in row]
    scored = [row for row in teachers if row["scores"][column.key][0] is not None]
    lone = next((row for row in rows if alone and row["title"] == alone[0]), None)
    if not scored or lone is None:
        return ""
    teacher = (min if smaller else max)(scored, key=lambda row: row["scores"][column.key][0])
    (score,) = teacher["scores"][column.key]
    known = [value for value in lone["scores"][column.key] if value is not None]
    if not known or is_above(score, known, smaller_is_better=smaller):
        return ""
    remark = (
        f"The teacher ({_mean_std([score], column)}) is not clearly above the student alone "
        f"({_mean_std(known, column)}). {REMEDY}."
    )
    teacher["remark"] = remark
    return remark


def _count(row: dict[str, Any], seeds: int) -> str:
    """Says how many seeds a row has, where it is not all of them (a stopped ablation)."""
    if "seconds" not in row:  # the teacher is one network, the constant guess none
        return ""
    count = len(row["seconds"])
    return "" if count == seeds else f" ({count} of {seeds} seeds so far)"


def _mean_std(values: list[float | None], column: Column) -> str:
    """A dash where a score does not exist (no object of any class in the split)."""
    known = [column.factor * v for v in values if v is not None]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.{column.decimals}f}"
    if len(known) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(known):.{column.decimals}f}"
