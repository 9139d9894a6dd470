"""Rows on their way to a tracker: in a thread of its own, so that no tracker can end or slow a run."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from queue import Full, Queue
from typing import IO, Any

from densekd.engine.trackers.base import About, Tracker
from densekd.ops.names import printable

MOST = 20_000  # rows that wait; a tracker that is further behind is left out
WIDTH = 200  # characters of a note, so that a new one covers the old one

Row = Mapping[str, Any]


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of nested values by its path: ``{"final/iou/road": 0.9}``."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found


class Sender:
    """Hands rows to one tracker.

    What the tracker has of a run is noted in ``RUN/trackers/NAME.json``. A run that goes on opens the same run there
    and sends the rows of metrics.jsonl that the tracker lacks, also where it failed for a while or was added later.

    Args:
        name: of the tracker.
        make: opens it.
        about: what it is told; `about.id` is read from the note.
        history: rows of metrics.jsonl that are there already.

    Attributes:
        trouble: why the tracker is left out; None while it works.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[About], Tracker],
        about: About,
        history: Iterable[Row] = (),
    ) -> None:
        self.name = name
        self.trouble: str | None = None
        self._note = about.folder / "trackers" / f"{name}.json"
        self._rows: Queue[Row | None] = Queue(MOST)
        self._final: Mapping[str, float] | None = None
        self._thread = threading.Thread(
            target=self._run, args=(make, about, list(history)), name=f"tracker {name}", daemon=True
        )
        self._thread.start()

    def send(self, row: Row) -> None:
        """One row, without waiting; a tracker that has failed gets none."""
        if self.trouble is not None:
            return
        try:
            self._rows.put_nowait(row)
        except Full:
            self.trouble = f"it is {MOST} rows behind"

    def end(self, final: Mapping[str, float] | None) -> None:
        """There are no more rows; `final` as in `Tracker.finish`."""
        self._final = final
        try:
            self._rows.put_nowait(None)
        except Full:
            self.trouble = self.trouble or f"it is {MOST} rows behind"

    def wait(self, seconds: float) -> bool:
        """Whether the tracker has everything, or was left out, after at most so long."""
        if self.trouble is None:
            self._thread.join(seconds)
        return self.trouble is not None or not self._thread.is_alive()

    def _run(self, make: Callable[[About], Tracker], about: About, history: list[Row]) -> None:
        try:
            known = _read(self._note)
            tracker = make(replace(about, id=known["id"]))
            known["id"] = tracker.id
            if tracker.overwrites:
                known |= {k: min(known[k], about.start) for k in ("step", "scored")}
            self._note.parent.mkdir(exist_ok=True)
            self._note.touch()
            with open(self._note, "r+", encoding="utf-8") as note:
                _write(note, known)
                for row in itertools.chain(history, iter(self._rows.get, None)):
                    if _hand(tracker, row, known):
                        _write(note, known)
            tracker.finish(self._final)
        except (Exception, SystemExit) as error:  # whatever a tracker raises: it is not the run
            text = (str(error).strip().splitlines() or [""])[0][:300]
            self.trouble = self.trouble or printable(f"{type(error).__name__}: {text}")


def _hand(tracker: Tracker, row: Row, known: dict[str, Any]) -> bool:
    """Give one row, unless the tracker has it."""
    step = row["step"]
    place = "scored" if any(name.startswith("val/") for name in row) else "step"
    if step <= known[place]:
        return False
    tracker.log(step, {k: v for k, v in numbers(row).items() if k != "step"})
    known[place] = step
    return True


def _write(note: IO[str], known: dict[str, Any]) -> None:
    """In one write, in place: a note is whole whenever the process is killed, and costs microseconds."""
    note.seek(0)
    note.write(json.dumps(known).ljust(WIDTH) + "\n")
    note.flush()


def _read(path: Path) -> dict[str, Any]:
    """What the tracker has of the run; nothing where no note says so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {"id": found["id"], "step": found["step"], "scored": found["scored"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        known = {}
    if isinstance(known.get("id"), str) and all(
        isinstance(known[k], int) for k in ("step", "scored")
    ):
        return known
    return {"id": None, "step": -1, "scored": -1}
