"""What a tracker is told of a run, and what it must do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "densekd"  # where no variable of the tracker's own names a project


@dataclass(frozen=True)
class About:
    """What a tracker is opened with.

    Attributes:
        name: of the run.
        folder: of the run; what a tracker keeps on disk may lie there.
        config: every setting, nested, as plain values.
        start: steps done already, where the run goes on.
        id: `Tracker.id` of the run's first start; None at the first.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    start: int
    id: str | None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


class Tracker(Protocol):
    """One run in one tracker. It is made by calling its class, or a function, with an `About`.

    It lives in a thread of its own, so it may wait for a network. What it raises is said once, and then the run goes
    on without it.

    Attributes:
        id: opens the same run again; kept in the run folder.
        overwrites: rows of steps after `About.start` are sent again, since it has forgotten them, or shows the newer.
    """

    id: str
    overwrites: bool

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row of metrics.jsonl, by the names that it has there."""
        ...

    def finish(self, final: Mapping[str, float] | None) -> None:
        """The last call.

        Args:
            final: the numbers of result.json as ``final/...``; None where the run was stopped before its end.
        """
        ...
