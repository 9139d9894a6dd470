"""Several runs side by side, each a process of its own, with one progress bar each.

A child is the very command a user could type, so a part of an ablation can be repeated by hand (its command.txt).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from densekd.engine.folder import RunFolder
from densekd.engine.launch import available_cores, stop_on_signals
from densekd.engine.log import read_metrics
from densekd.errors import UserError


@dataclass
class Child:
    """One run: its title, its command line (after ``python -m densekd``), its folder and length."""

    title: str
    arguments: list[str]
    folder: RunFolder
    steps: int
    process: subprocess.Popen | None = field(default=None, repr=False)
    bar: TaskID | None = None

    @property
    def finished(self) -> bool:
        return self.folder.result.exists()

    @property
    def log(self) -> Path:
        return self.folder.path.with_name(self.folder.path.name + ".log")


def _die_with_parent() -> None:
    """Linux: a child must not go on alone when its parent is killed (a second start would meet it)."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return


def _start(child: Child, cores: int) -> None:
    child.log.parent.mkdir(parents=True, exist_ok=True)
    # Its share of the cores, to divide between compute and loader workers. OMP_NUM_THREADS, if set, holds for it too.
    environment = {**os.environ, "DENSEKD_CORES": str(cores), "PYTHONUNBUFFERED": "1"}
    with open(child.log, "a", encoding="utf-8") as log:
        child.process = subprocess.Popen(
            [sys.executable, "-m", "densekd", *child.arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then asks each child to save
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _show(child: Child, progress: Progress) -> None:
    rows = read_metrics(child.folder.metrics)
    if not rows or child.bar is None:
        return
    speed = next((r["images_per_s"] for r in reversed(rows) if "images_per_s" in r), 0.0)
    progress.update(child.bar, completed=rows[-1].get("step", 0), status=f"{speed:.1f} images/s")


def run_children(children: list[Child], *, jobs: int, quiet: bool = False) -> int:
    """Run them, `jobs` at a time; finished ones are left alone. Returns 0, or 128 + the signal that stopped it.

    Raises:
        UserError: a child failed; the message carries the end of what it printed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("this command starts its own processes; run it without torchrun")
    console = Console(quiet=quiet)
    waiting = [c for c in children if not c.finished]
    jobs = max(1, min(jobs, len(waiting)))
    cores = max(1, available_cores() // jobs)
    running: list[Child] = []
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with stop_on_signals() as stop, Progress(*columns, console=console) as progress:
        for child in children:
            done = child.steps if child.finished else 0
            child.bar = progress.add_task(
                child.title, total=child.steps, completed=done, start=False, status=""
            )
        try:
            while waiting or running:
                while waiting and len(running) < jobs and not stop:
                    # The last first: with the most terms it takes longest, and should not run alone at the end.
                    child = waiting.pop()
                    _start(child, cores)
                    assert child.bar is not None
                    progress.start_task(child.bar)
                    running.append(child)
                time.sleep(0.5)
                for child in list(running):
                    _show(child, progress)
                    assert child.process is not None
                    status = child.process.poll()
                    if status is None:
                        continue
                    running.remove(child)
                    if status != 0 and not stop:
                        tail = child.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                        raise UserError(
                            f"{child.title} ended with status {status}:\n{tail.strip()}"
                        )
                    if not console.is_terminal and status == 0:
                        progress.console.print(f"{child.title}: done", highlight=False)
                if stop:
                    waiting.clear()
                    for child in running:
                        assert child.process is not None
                        child.process.send_signal(signal.SIGTERM)
                    for child in running:
                        assert child.process is not None
                        child.process.wait()
                    return stop.exit_status
        finally:
            for child in running:
                if child.process is not None and child.process.poll() is None:
                    child.process.terminate()
                    child.process.wait()
    return 0
