"""Runs put together to the rows of a table, and what the rows say: scores with spread, gain, share of the gap."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from densekd.build.task import task_class
from densekd.config.schema import Task as TaskSettings
from densekd.errors import UserError
from densekd.report.records import RunRecord, is_number
from densekd.tasks import Column

TEACHER, ALONE, DISTILLED, REFERENCE, GUESS = (
    "teacher",
    "alone",
    "distilled",
    "reference",
    "guess",
)


@dataclass
class Row:
    """One network, trained with one or several seeds.

    Attributes:
        title: as it stands in the table.
        role: `TEACHER`; `ALONE`: the student without the teacher; `DISTILLED`; `REFERENCE`: another network without a
            teacher; `GUESS`: the constant guess.
        runs: one a seed; empty where only scores are known.
        scores: of each run that has been scored.
        seeds: of the scores.
    """

    title: str
    role: str
    runs: list[RunRecord] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    parameters: int | None = None
    macs: int | None = None
    macs_size: tuple[int, int] | None = None

    def values(self, key: str) -> list[float]:
        return [float(s[key]) for s in self.scores if is_number(s.get(key))]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def std(self, key: str) -> float | None:
        """Of a sample; None below two seeds."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None

    def by_class(self, key: str) -> dict[str, float | None]:
        """Mean over seeds of a score by class."""
        tables = [s[key] for s in self.scores if isinstance(s.get(key), dict)]
        names = list(dict.fromkeys(name for table in tables for name in table))
        found = {}
        for name in names:
            values = [float(t[name]) for t in tables if is_number(t.get(name))]
            found[name] = statistics.fmean(values) if values else None
        return found


def row_of(title: str, role: str, runs: Sequence[RunRecord]) -> Row:
    """A row of finished and unfinished runs, by seed."""
    ordered = sorted(runs, key=lambda run: run.seed)
    scored = [run for run in ordered if run.scores]
    row = Row(title, role, ordered, [run.scores or {} for run in scored], [r.seed for r in scored])
    for run in ordered:
        if run.result is not None:
            row.parameters, row.macs = run.result.get("parameters"), run.result.get("macs")
            size = run.result.get("macs_size")
            row.macs_size = tuple(size) if isinstance(size, list) and len(size) == 2 else None
            break
    return row


@dataclass(frozen=True)
class Headline:
    """What the rows come down to, in the units of the main score (fractions, metres).

    Attributes:
        gain: distilled minus alone, positive where the teacher made it better; of equal seeds where there are such.
        gain_std: over the pairs; None below two.
        pairs: how many.
        share: of the gap between student alone and teacher that is closed; None where the teacher is not ahead.
    """

    teacher: Row | None
    alone: Row | None
    distilled: Row | None
    gain: float | None = None
    gain_std: float | None = None
    pairs: int = 0
    share: float | None = None


def headline(rows: Sequence[Row], column: Column, smaller: bool) -> Headline:
    """The best teacher, student alone, and the best distilled row by its mean.

    Args:
        column: the main score.
        smaller: whether it is an error.
    """
    sign = -1.0 if smaller else 1.0
    teacher, alone = (_first(rows, role, column.key) for role in (TEACHER, ALONE))
    taught = [r for r in rows if r.role == TEACHER and r.mean(column.key) is not None]
    teacher = max(taught, key=lambda r: sign * (r.mean(column.key) or 0.0), default=teacher)
    scored = [r for r in rows if r.role == DISTILLED and r.mean(column.key) is not None]
    best = max(scored, key=lambda r: sign * (r.mean(column.key) or 0.0), default=None)
    if best is None:
        best = next((r for r in rows if r.role == DISTILLED), None)
    if alone is None or best is None or best.mean(column.key) is None:
        return Headline(teacher, alone, best)
    pairs = paired(alone, best, column.key)
    gains = [sign * (after - before) for before, after in pairs]
    if not gains:
        gains = [sign * ((best.mean(column.key) or 0.0) - (alone.mean(column.key) or 0.0))]
    gain = statistics.fmean(gains)
    spread = statistics.stdev(gains) if len(pairs) > 1 else None
    top = None if teacher is None else teacher.mean(column.key)
    share = share_of_gap(alone.mean(column.key), best.mean(column.key), top, smaller=smaller)
    return Headline(teacher, alone, best, gain, spread, len(pairs), share)


def share_of_gap(
    alone: float | None, distilled: float | None, teacher: float | None, *, smaller: bool = False
) -> float | None:
    """(distilled - alone) / (teacher - alone): 0 where distillation gave nothing, 1 where the student is as good.

    None where a score is missing or the teacher is not better than the student alone: there is no gap to close.
    """
    if alone is None or distilled is None or teacher is None:
        return None
    gap = alone - teacher if smaller else teacher - alone
    if gap <= 0:
        return None
    return (alone - distilled if smaller else distilled - alone) / gap


def paired(before: Row, after: Row, key: str) -> list[tuple[float, float]]:
    """Scores of the seeds that both rows have."""
    first, second = (
        {
            seed: float(s[key])
            for seed, s in zip(row.seeds, row.scores, strict=True)
            if is_number(s.get(key))
        }
        for row in (before, after)
    )
    return [(first[seed], second[seed]) for seed in first if seed in second]


def _first(rows: Sequence[Row], role: str, key: str) -> Row | None:
    """The first scored row of a role, else the first one."""
    of_role = [row for row in rows if row.role == role]
    scored = [row for row in of_role if row.mean(key) is not None]
    return next(iter([*scored, *of_role]), None)


def main_columns(task: str, rows: Sequence[Row]) -> tuple[list[Column], frozenset[str]]:
    """The columns of the task's table, the main score first, and which scores are errors.

    A task that cannot be imported here has the columns that its scores show.
    """
    try:
        built: Any = task_class(TaskSettings(task))
        return list(built.columns), frozenset(built.smaller_is_better)
    except (UserError, AttributeError):
        scores = next((s for row in rows for s in row.scores), {})
        keys = [k for k, v in scores.items() if isinstance(v, float)]
        return [Column(k, k, 1, 4) for k in keys[:3]] or [
            Column("score", "score", 1, 4)
        ], frozenset()


def class_key(rows: Sequence[Row]) -> str | None:
    """The name of the score that is given by class, where there is one."""
    for row in rows:
        for scores in row.scores:
            for key, value in scores.items():
                if isinstance(value, dict) and value and key != "skipped":
                    return key
    return None


def number(value: float | None, column: Column, *, signed: bool = False) -> str:
    """A score as the table writes it; a dash where there is none."""
    if value is None:
        return "–"
    return f"{column.factor * value:{'+' if signed else ''}.{column.decimals}f}".replace("-", "−")


def mean_std(row: Row, column: Column) -> str:
    mean, std = row.mean(column.key), row.std(column.key)
    return number(mean, column) + ("" if std is None else f" ± {number(std, column)}")
