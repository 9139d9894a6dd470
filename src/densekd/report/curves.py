"""Learning curves: points from the rows of metrics.jsonl, and line charts of them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from densekd.report.records import RunRecord, is_number

POINTS = 150  # of a line: more are not seen at the width of a chart
WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26  # room around the plot
LOGARITHMIC = 25  # from this ratio of the largest to the smallest value on
COLOURS = 8  # of lines in page.css

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A curve: its points, the number of its row (the colour) and what it is called."""

    points: list[Point]
    row: int
    title: str


@dataclass(frozen=True)
class Chart:
    """One quantity over the steps, with a line a run."""

    key: str
    heading: str
    lines: list[Line]
    svg: Markup
    logarithmic: bool


# What a key of metrics.jsonl is called; others stand as they are.
HEADINGS = {
    "loss": "loss (all terms that train the student)",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "images_per_s": "images/s",
}
LAST = ("grad_norm", "lr", "images_per_s")  # after the terms
NOT_CURVES = ("step", "memory_gb")


def points(rows: Sequence[dict[str, Any]], key: str) -> list[Point]:
    """(step, value) of every row that has a finite value."""
    return [
        (float(r["step"]), float(r[key])) for r in rows if "step" in r and is_number(r.get(key))
    ]


def thin(line: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most `most` points: means over equal parts of the line."""
    if len(line) <= most:
        return list(line)
    edges = [round(i * len(line) / most) for i in range(most + 1)]
    parts = [line[a:b] for a, b in pairwise(edges)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in parts
        if part
    ]


def keys_of(runs: Sequence[RunRecord], main: str) -> list[str]:
    """What there are curves of: the main validation score, the loss, its terms, then the rest."""
    seen = dict.fromkeys(
        key for run in runs for row in run.metrics for key, v in row.items() if is_number(v)
    )
    validation = f"val/{main}"
    terms = [k for k in seen if k.startswith(("task/", "distill/", "discriminator/"))]
    terms.sort(
        key=lambda k: ("task/", "distill/", "discriminator/").index(k.partition("/")[0] + "/")
    )
    first = [k for k in (validation, "loss") if k in seen]
    known = {*first, *terms, *LAST, *NOT_CURVES}
    own = [k for k in seen if k not in known and not k.startswith("val/")]
    return [*first, *terms, *own, *(k for k in LAST if k in seen)]


def charts(rows: Sequence[tuple[str, Sequence[RunRecord]]], main: str, heading: str) -> list[Chart]:
    """One chart a key, with the lines of all runs.

    Args:
        rows: (title, its runs), in the order of their colours.
        main: key of the main score.
        heading: its heading.
    """
    found = []
    for key in keys_of([run for _, runs in rows for run in runs], main):
        lines = []
        for number, (title, runs) in enumerate(rows):
            for run in runs:
                line = thin(points(run.metrics, key))
                name = title if len(runs) == 1 else f"{title}, seed {run.seed}"
                if line:
                    lines.append(Line(line, number, name))
        if key == f"val/{main}" and all(len(line.points) < 2 for line in lines):
            continue  # scored at the end alone: the table says it
        name = heading + " on validation" if key == f"val/{main}" else HEADINGS.get(key, key)
        values = [y for line in lines for _, y in line.points]
        wide = key != "lr" and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC
        found.append(Chart(key, name, lines, line_chart(lines, name, logarithmic=wide), wide))
    return found


def line_chart(lines: Sequence[Line], label: str, *, logarithmic: bool = False) -> Markup:
    """An SVG with axes; each line has the class ``s0``, ``s1``, ... of its row and its name as a title.

    Raises:
        ValueError: no line has a point.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        raise ValueError("no line has a point")
    low, high = scale_ends(ys, logarithmic)
    first, last = (0.0, max(xs)) if max(xs) > 0 else (0.0, 1.0)

    def across(x: float) -> float:
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        place = (
            (math.log10(y) - math.log10(low)) / (math.log10(high) - math.log10(low))
            if logarithmic
            else (y - low) / (high - low)
        )
        return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)} over steps, {len(lines)} lines">'
    ]
    for tick in ticks(low, high, logarithmic):
        y = up(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(short(tick))}</text>'
        )
    for tick in ticks(first, last, False):
        x = across(tick)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(short(tick))}</text>'
        )
    for line in lines:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        style = f's{line.row % COLOURS}" data-row="{line.row}'
        end = f"{line.title}: {short(line.points[-1][1])} at step {line.points[-1][0]:.0f}"
        if len(line.points) == 1:
            x, y = path.split(",")
            shape = f'<circle class="dot {style}" cx="{x}" cy="{y}" r="3.5">'
            parts.append(f"{shape}<title>{escape(end)}</title></circle>")
        else:
            shape = f'<polyline class="line {style}" points="{path}">'
            parts.append(f"{shape}<title>{escape(end)}</title></polyline>")
    return Markup("".join(parts) + "</svg>")


def scale_ends(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """Where an axis begins and ends: a little beyond the values, at 0 where they come near it."""
    low, high = min(values), max(values)
    if logarithmic:
        return low / 1.15, high * 1.15
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    if 0 <= low < 0.4 * high:
        low = 0.0
    pad = 0.05 * (high - low)
    return (low if low == 0 else low - pad), high + pad


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Three to six round values between `low` and `high`."""
    if logarithmic:
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        tens = [10.0**p for p in powers]
        if len(tens) >= 3:
            return tens[:: math.ceil(len(tens) / 5)]
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [m * 10.0**p for p in decades for m in (1, 3) if low <= m * 10.0**p <= high]
    raw = (high - low) / 4
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(f * base for f in (1, 2, 2.5, 5, 10) if f * base >= raw)
    start = math.ceil(low / step - 1e-9)
    return [i * step for i in range(start, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number of few characters: 0.0012 as 1.2e-3, 40000 as 40k."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1e-3:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
