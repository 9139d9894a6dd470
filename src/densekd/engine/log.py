"""metrics.jsonl is the truth; the bar, the printed lines and trackers show it."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from densekd.engine.trackers import Sender
from densekd.ops.files import write_text, writing


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a line cut by a kill, or damaged, is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def cut_metrics(path: Path, last_step: int, last_scored: int = 0) -> None:
    """Drop rows after the step (and scores after the evaluation) a run resumes from, so that none stands twice."""
    if not path.exists():
        return
    rows = [
        row
        for row in read_metrics(path)
        if row["step"] <= (last_scored if any(k.startswith("val/") for k in row) else last_step)
    ]
    write_text(path, "".join(_line(row) for row in rows))


def _line(row: dict[str, Any]) -> str:
    """One line of JSON, which has no NaN and no infinity: null stands for them."""
    return json.dumps(finite(row), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """For JSON: None in place of every NaN and infinity."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def memory_gb(device: torch.device) -> float:
    """Peak memory so far: of the GPU's allocator, or of this process (resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes on macOS, KiB elsewhere


PATIENCE = 60.0  # seconds that a run that has ended waits for its trackers
FIRST, TIMED = 2, 5  # steps: those that warm up, those that tell how long a run will take


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Log:
    """Writes rows, shows progress. Only rank 0 has one that does anything.

    Args:
        path: metrics.jsonl.
        active: with False no method does anything (other ranks).
        total: steps of the run.
        start: steps done already, where the run goes on.
        trackers: are told every row too; one that fails is left out with a warning.
        quiet: print nothing but what `conclude` is given; the files are written all the same.
    """

    def __init__(
        self,
        path: Path,
        *,
        active: bool,
        total: int,
        start: int = 0,
        title: str = "train",
        device: torch.device | None = None,
        trackers: Sequence[Sender] = (),
        quiet: bool = False,
    ) -> None:
        self.active = active
        self.total = total
        self.title = title
        self.device = device or torch.device("cpu")
        self.quiet = quiet
        self.console = Console(soft_wrap=True)
        self.progress: Progress | None = None
        self.trackers = list(trackers)
        self.final: dict[str, float] | None = (
            None  # for trackers: the numbers of a run that has finished
        )
        self._mark = (time.perf_counter(), start)  # the last row of steps
        self._last = self._mark[0]  # end of the last step or row
        self._images = 0
        self.start = start
        self._counted = 0  # steps since the start of this process
        self._first = self._last
        if not active:
            return
        self.path = path
        with writing(path):
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
        if self.console.is_terminal and not quiet:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
            )
            self.terms = Text("", style="dim")  # in a line of its own: there may be many
            self.live = Live(Group(self.progress, self.terms), console=self.console)
            self.live.start()
            self.bar = self.progress.add_task(title, total=total, completed=start, status="")

    def count(self, images: int) -> None:
        """One step of `images` is done."""
        self._images += images
        self._last = time.perf_counter()
        self._counted += 1
        if self._counted == FIRST:
            self._first = self._last
        if self._counted == FIRST + TIMED and self.total - self.start > 4 * TIMED:
            seconds = (self._last - self._first) / TIMED * (self.total - self.start)
            self.say(
                f"about {duration(seconds)} for {self.total - self.start} steps, without evaluations"
            )
        if self.progress is not None:
            self.progress.advance(self.bar)

    def steps(self, step: int, values: dict[str, float], lr: float) -> None:
        """A row of averaged step values, with speed and memory since the last row."""
        if not self.active:
            return
        now = time.perf_counter()
        seconds, steps = now - self._mark[0], step - self._mark[1]
        speed = self._images / seconds if seconds > 0 else 0.0
        row = {
            "step": step,
            **values,
            "lr": lr,
            "images_per_s": round(speed, 3),
            "memory_gb": round(memory_gb(self.device), 3),
        }
        self._write(row)
        self._mark, self._last, self._images = (now, step), now, 0
        status = f"loss {values.get('loss', float('nan')):.3f}  {speed:.1f} images/s  {row['memory_gb']:.2f} GB"
        parts = "  ".join(
            f"{k.split('/')[-1]} {v:.3f}"
            for k, v in values.items()
            if "/" in k and not k.startswith("weight/")
        )
        if self.progress is not None:
            self.progress.update(self.bar, status=status)
            self.terms.plain = parts
            return
        left = (self.total - step) * seconds / max(1, steps)
        self.say(
            f"{self.title} {step}/{self.total}  {status}  eta {int(left) // 60}:{int(left) % 60:02d}  {parts}"
        )

    def scores(self, step: int, scores: dict[str, Any]) -> None:
        """A row of evaluation results, under ``val/``; what passed since the last step is no training time."""
        if not self.active:
            return
        self._write({"step": step, **{f"val/{k}": v for k, v in scores.items()}})
        now = time.perf_counter()
        self._mark = (self._mark[0] + now - self._last, self._mark[1])
        self._last = now
        line = "  ".join(f"{k} {v:.4f}" for k, v in scores.items() if isinstance(v, float))
        self.say(f"{self.title} {step}/{self.total}  val: {line}")

    def say(self, text: str) -> None:
        """A line on the way."""
        if not self.quiet:
            self.conclude(text)

    def conclude(self, text: str) -> None:
        """What came out, which a quiet run says too."""
        if self.active:
            self.console.print(text, highlight=False, markup=False)

    def _write(self, row: dict[str, Any]) -> None:
        with writing(self.path):
            self.file.write(_line(row))
            self.file.flush()
        for tracker in self.trackers:
            tracker.send(row)
        self._leave_out()

    def _leave_out(self) -> None:
        """Say once which trackers have failed, and go on without them."""
        for tracker in [t for t in self.trackers if t.trouble is not None]:
            self.trackers.remove(tracker)
            self.conclude(
                f"warning: the tracker {tracker.name} is left out ({tracker.trouble}); metrics.jsonl has everything"
            )

    def close(self) -> None:
        if not self.active:
            return
        if self.progress is not None:
            self.live.stop()
            self.progress = None
        self._end_trackers()
        with contextlib.suppress(OSError):  # what a full disk refused was said by the write
            self.file.close()

    def _end_trackers(self) -> None:
        until = time.monotonic() + PATIENCE
        for tracker in self.trackers:
            tracker.end(self.final)
        for tracker in self.trackers:
            if not tracker.wait(min(3.0, PATIENCE)):
                self.say(f"waiting for the tracker {tracker.name}, at most {PATIENCE:.0f} s")
            if not tracker.wait(max(0.0, until - time.monotonic())):
                tracker.trouble = f"it has not taken everything {PATIENCE:.0f} s after the end"
        self._leave_out()
        self.trackers = []
