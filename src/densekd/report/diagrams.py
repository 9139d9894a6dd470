"""Small drawings of a report: how much of the gap is closed, and how sure answers are."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from densekd.report.curves import COLOURS
from densekd.report.rows import Headline, number
from densekd.tasks import Column

SIDE, ROOM = 200, 34  # of a reliability diagram: the plot and what stands left of and below it


def gap_bar(head: Headline, column: Column, *, smaller: bool) -> dict[str, Any] | None:
    """Where the distilled student stands between the student alone (0) and the teacher (1).

    Returns:
        the ends' scores and ``place``, in per cent of the bar, which is cut at its end; None where no part of a gap is
        closed.
    """
    if (
        head.share is None
        or head.share < 0
        or head.alone is None
        or head.teacher is None
        or head.distilled is None
    ):
        return None
    return {
        "alone": number(head.alone.mean(column.key), column),
        "teacher": number(head.teacher.mean(column.key), column),
        "distilled": number(head.distilled.mean(column.key), column),
        "share": f"{100 * head.share:.0f}",
        "place": round(100 * min(1.0, head.share), 1),
        "smaller": smaller,
    }


def reliability(calibration: dict[str, Any], row: int, title: str) -> Markup:
    """Bars of accuracy over confidence; the diagonal is where they would be equal."""
    full = SIDE + ROOM
    parts = [
        f'<svg class="chart reliability" viewBox="0 0 {full + 8} {full + 2}" role="img" aria-label="Reliability of '
        f"{escape(title)}: accuracy over confidence, expected calibration error "
        f'{100 * calibration["ece"]:.2f} per cent">'
    ]
    for tick in (0, 0.5, 1):
        y, x = SIDE + 6 - tick * SIDE, ROOM + tick * SIDE
        parts.append(
            f'<line class="grid" x1="{ROOM}" x2="{full}" y1="{y}" y2="{y}"/>'
            f'<text x="{ROOM - 5}" y="{y + 3.5}" text-anchor="end">{100 * tick:.0f}</text>'
            f'<text x="{x}" y="{SIDE + 20}" text-anchor="middle">{100 * tick:.0f}</text>'
        )
    most = max(part["share"] for part in calibration["bins"]) or 1.0
    for part in calibration["bins"]:
        if part["accuracy"] is None:
            continue
        x = ROOM + part["low"] * SIDE
        wide = (part["high"] - part["low"]) * SIDE
        tall = part["accuracy"] * SIDE
        solid = 0.3 + 0.7 * (part["share"] / most) ** 0.5  # bars of few pixels are pale
        text = (
            f"confidence {100 * part['confidence']:.1f} %: right in {100 * part['accuracy']:.1f} %, "
            f"{100 * part['share']:.1f} % of the pixels"
        )
        parts.append(
            f'<rect class="bar s{row % COLOURS}" x="{x + 0.5:.1f}" y="{SIDE + 6 - tall:.1f}" width="{wide - 1:.1f}" '
            f'height="{tall:.1f}" opacity="{solid:.2f}"><title>{escape(text)}</title></rect>'
        )
    parts.append(f'<line class="diagonal" x1="{ROOM}" y1="{SIDE + 6}" x2="{full}" y2="6"/>')
    return Markup("".join(parts) + "</svg>")
