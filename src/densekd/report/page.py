"""The page of a report: what stands in it, from rows and answers, and its HTML in one file without anything outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

import densekd
from densekd.ops.names import bytes_text
from densekd.report import curves
from densekd.report.diagrams import gap_bar, reliability
from densekd.report.examine import Examined, pairs_confused, shares
from densekd.report.layers import Shown
from densekd.report.rows import Row, headline, number
from densekd.report.tables import (
    cards,
    class_table,
    environments,
    last_values,
    row_values,
    run_title,
    score_table,
    settings_table,
    verdict,
)
from densekd.tasks import Column

MARK = '<meta name="generator" content="densekd report'
MATRIX = 24  # classes up to which the whole confusion matrix is shown


@dataclass(frozen=True)
class Looked:
    """What came out of asking the networks about the validation images; lists have one entry a network.

    Attributes:
        rows: the row that each network stands for; None for a teacher whose row was made later.
        seeds: of the run that the weights are from.
        seen: images that were looked at, of `total`.
        latency: what one image costs: see `densekd.workflows.report.cost`.
        depth_range: metres; None for other tasks.
    """

    networks: list[str]
    rows: list[Row | None]
    seeds: list[int]
    examined: list[Examined]
    images: list[Shown]
    classes: list[str]
    palette: list[tuple[int, int, int]]
    seen: int
    total: int
    split: str
    latency: list[dict[str, Any]]
    device: str
    threads: int
    depth_range: tuple[float, float] | None = None
    remarks: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Templates beside this file; all that is put in is escaped, and a missing value is an error."""
    made = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["short"] = curves.short
    made.filters["bytes"] = bytes_text
    made.filters["breakable"] = breakable
    return made


def source(name: str) -> str:
    return resources.files("densekd.report").joinpath(name).read_text(encoding="utf-8")


def breakable(name: str) -> Markup:
    """A dotted name that a narrow column may break after its dots and underscores."""
    return Markup(str(escape(name)).replace(".", ".<wbr>").replace("_", "_<wbr>"))


def render(
    task: str,
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    smaller: bool,
    looked: Looked | None,
    without: str,
    remarks: Sequence[str],
    command: str,
) -> str:
    """The HTML of a report.

    Args:
        task: its name.
        columns: of the table, the main score first.
        smaller: whether the main score is an error.
        looked: what the networks answered; None: the page says `without`, the reason.
        command: that makes this page again.
    """
    values = {
        **common(task, rows, columns, smaller=smaller),
        "looked": None if looked is None else looked_values(looked, columns[0]),
        "without": without,
        "remarks": [*remarks, *([] if looked is None else looked.remarks)],
        "report_command": command,
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "css": Markup(source("page.css")),
        "js": Markup(source("page.js")),
        "mark": Markup(MARK),
        "version": densekd.__version__,
    }
    return environment().get_template("page.html").render(values)


def common(
    task: str, rows: Sequence[Row], columns: Sequence[Column], *, smaller: bool
) -> dict[str, Any]:
    """What the report and the live page have in common: all that stands in the runs' own files."""
    head = headline(rows, columns[0], smaller)
    shown = [row for row in rows if row.runs]
    column = columns[0]
    return {
        "task": task,
        "title": title_of(rows),
        "data": data_of(rows),
        "column": column,
        "columns": columns,
        "smaller": smaller,
        "cards": cards(head, rows, column),
        "verdict": verdict(head, column, smaller),
        "gap": gap_bar(head, column, smaller=smaller),
        "rows": [row_values(row, columns, head) for row in rows],
        "macs_size": next((row.macs_size for row in rows if row.macs_size), None),
        "several": any(len(row.runs) > 1 for row in rows),
        "lines": [(i, row.title) for i, row in enumerate(shown)],
        "charts": curves.charts([(r.title, r.runs) for r in shown], column.key, column.heading),
        "last": last_values(shown),
        "classes": class_table(rows, head, smaller),
        "scores": score_table(rows, columns),
        "settings": settings_table(shown),
        "environments": environments(shown),
        "commands": [
            (run_title(row, run), run.commands) for row in shown for run in row.runs if run.commands
        ],
    }


def title_of(rows: Sequence[Row]) -> str:
    """``fpn_timm, taught by fpn_timm``."""
    taught = next((run for row in rows for run in row.runs if run.distilled), None)
    run = taught or next(run for row in rows for run in row.runs)
    student = _network(run.tree.get("model"))
    return f"{student}, taught by {_network(run.tree.get('teacher'))}" if taught else student


def _network(section: Any) -> str:
    """``fpn_timm (resnet10t)``."""
    section = section if isinstance(section, dict) else {}
    options = section.get("options") or {}
    inner = options.get("backbone") or options.get("arch")
    return f"{section.get('name', 'network')}" + (f" ({inner})" if inner else "")


def data_of(rows: Sequence[Row]) -> str:
    run = next(run for row in rows for run in row.runs)
    data = run.tree.get("data") or {}
    return f"{data.get('dataset', '')}, split {data.get('val_split', 'val')}"


def looked_values(looked: Looked, column: Column) -> dict[str, Any]:
    """The parts of the page that the networks' answers gave."""
    networks = [
        {
            "title": title,
            "seed": seed if row is not None and len(row.runs) > 1 else None,
            "score": number(examined.scores.get(column.key), column),
        }
        for title, row, seed, examined in zip(
            looked.networks, looked.rows, looked.seeds, looked.examined, strict=True
        )
    ]
    matrices = [
        {
            "title": title,
            "rows": [
                (name, cells)
                for name, cells in zip(looked.classes, shares(examined.confusion), strict=True)
            ],
            "pairs": [
                (looked.classes[true], looked.classes[answer], f"{100 * share:.1f}")
                for true, answer, share in pairs_confused(examined.confusion)
            ],
        }
        for title, examined in zip(looked.networks, looked.examined, strict=True)
        if examined.confusion is not None
    ]
    calibrations = [
        {
            "title": title,
            "ece": f"{100 * examined.calibration['ece']:.2f}",
            "svg": reliability(examined.calibration, i, title),
        }
        for i, (title, examined) in enumerate(zip(looked.networks, looked.examined, strict=True))
        if examined.calibration is not None and examined.calibration["ece"] is not None
    ]
    names = list(dict.fromkeys(layer[0] for image in looked.images for layer in image.layers))
    return {
        "networks": networks,
        "seen": looked.seen,
        "total": looked.total,
        "split": looked.split,
        "classes": list(zip(looked.classes, map(_colour, looked.palette), strict=False)),
        "whole_matrix": len(looked.classes) <= MATRIX,
        "matrices": matrices[::-1],
        "calibrations": calibrations,
        "images": looked.images,
        "layers": names,
        "left": _first_of(names, ["student alone", "truth", *looked.networks]),
        "right": looked.networks[-1],
        "compares": any("gain" in image.why or "loss" in image.why for image in looked.images),
        "costs": [
            {"title": title, **cost}
            for title, cost in zip(looked.networks, looked.latency, strict=True)
        ],
        "device": looked.device,
        "threads": looked.threads,
        "depth_range": looked.depth_range,
    }


def _first_of(names: Sequence[str], wanted: Sequence[str]) -> str:
    return next((name for name in wanted if name in names), "")


def _colour(rgb: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{v:02x}" for v in rgb)
