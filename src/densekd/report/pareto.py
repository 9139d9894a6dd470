"""Score against latency as an SVG: a point a network, and the line of those that no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 24, 56
COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#8e5ea2", "#b8860b", "#4a4e69")
INK, PALE = "#222222", "#d9d9d9"


@dataclass(frozen=True)
class Point:
    """A network.

    Attributes:
        milliseconds: of one image.
        score: in the unit of the axis.
        group: points of one group have one colour; the legend names it.
    """

    name: str
    milliseconds: float
    score: float
    group: str = ""


def front(points: Sequence[Point], *, smaller: bool = False) -> list[Point]:
    """The points that no other one beats in time and score, the fastest first."""
    best: list[Point] = []
    sign = -1 if smaller else 1
    for point in sorted(points, key=lambda p: (p.milliseconds, -sign * p.score)):
        if not best or sign * point.score > sign * best[-1].score:
            best.append(point)
    return best


def pareto_svg(points: Sequence[Point], *, heading: str, where: str, smaller: bool = False) -> str:
    """The picture; time has a logarithmic axis.

    Args:
        heading: of the score's axis.
        where: what was measured, below the time's axis: device, threads, size.
        smaller: the score is an error.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("a picture needs at least one network whose score is known")
    times, scores = [p.milliseconds for p in points], [p.score for p in points]
    low, high = math.log10(min(times)) - 0.12, math.log10(max(times)) + 0.25
    margin = 0.15 * (max(scores) - min(scores)) or 0.05 * abs(scores[0]) or 1.0
    bottom, top = min(scores) - margin, max(scores) + margin

    def x(milliseconds: float) -> float:
        return LEFT + (math.log10(milliseconds) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(score: float) -> float:
        return HEIGHT - BOTTOM - (score - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>{escape(heading)} against latency</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in _log_ticks(low, high):
        parts.append(_line(x(tick), TOP, x(tick), HEIGHT - BOTTOM, PALE))
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in _ticks(bottom, top):
        parts.append(_line(LEFT, y(tick), WIDTH - RIGHT, y(tick), PALE))
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    parts.append(
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, f"milliseconds an image ({where})", "middle")
    )
    parts.append(
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)" text-anchor="middle" '
        f'fill="{INK}">{escape(heading)}</text>'
    )
    line = " ".join(
        f"{x(p.milliseconds):.1f},{y(p.score):.1f}" for p in front(points, smaller=smaller)
    )
    parts.append(f'<polyline points="{line}" fill="none" stroke="#888888" stroke-dasharray="5 4"/>')
    groups = list(dict.fromkeys(p.group for p in points))
    for point in points:
        colour = COLOURS[groups.index(point.group) % len(COLOURS)]
        across, down = x(point.milliseconds), y(point.score)
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="6" fill="{colour}"/>')
        is_right = across > WIDTH * 0.7
        parts.append(
            _text(
                across + (-10 if is_right else 10),
                down - 8,
                point.name,
                "end" if is_right else "start",
            )
        )
    for number, group in enumerate(g for g in groups if g):
        colour = COLOURS[groups.index(group) % len(COLOURS)]
        down = HEIGHT - BOTTOM - 14 - 18 * number
        parts.append(f'<circle cx="{WIDTH - RIGHT - 150}" cy="{down - 4}" r="5" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT - 138, down, group, "start"))
    return "\n".join([*parts, "</svg>\n"])


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers."""
    step = 10 ** math.floor(math.log10(high - low))
    for factor in (2.0, 1.0, 0.5, 0.2, 0.1):
        first = math.ceil(low / (step * factor))
        last = math.floor(high / (step * factor))
        if last - first >= 3:
            return [round(i * step * factor, 10) for i in range(first, last + 1)]
    return [low, high]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten."""
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _line(x0: float, y0: float, x1: float, y1: float, colour: str) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'
    )
