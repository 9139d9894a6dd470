"""`watch`: the live page of a run, an ablation or a demo."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from densekd.errors import UserError
from densekd.report.live import HOST, State, body, make_server
from densekd.report.page import common
from densekd.report.records import RunRecord, is_number
from densekd.report.rows import main_columns
from densekd.workflows.report_runs import collect, say_codes

QUIET = 90.0  # seconds without a new row after which a run is said to be still, or stopped


def watch(folder: Path, *, port: int, started: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        started: called once with the address.

    Raises:
        UserError: the folder is no run, or the port is taken.
    """
    if folder.is_dir():
        say_codes(collect([folder]))
    read_state(folder)  # says now what is wrong with the folder
    server = make_server(lambda: read_state(folder), port)
    try:
        started(f"http://{HOST}:{server.server_address[1]}/")
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        return
    finally:
        server.server_close()


def read_state(folder: Path) -> State:
    """What the run's files say now."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; RUN is the folder of a run that has begun (densekd train and distill print it)"
        )
    collected = collect([folder])
    columns, errors = main_columns(collected.task, collected.rows)
    values = common(collected.task, collected.rows, columns, smaller=columns[0].key in errors)
    runs = collected.runs
    own = [
        run for run in runs if run.path.resolve() == folder.resolve()
    ]  # its teacher may be there too
    line = progress(own[0]) if own else _of_many(runs)
    return State(folder.resolve().name, line, body({**values, "remarks": collected.remarks}))


def progress(run: RunRecord) -> str:
    """``step 120 of 400 (30 %), loss 0.913, 12.1 images/s, about 4 min left``."""
    if run.result is not None:
        minutes = run.result.get("seconds")
        took = f", {minutes / 60:.1f} min of training" if is_number(minutes) else ""
        return f"finished: {run.done} steps{took}"
    if not run.metrics:
        return f"begun; nothing is logged yet (the first line comes at step {_every(run)})"
    share = f" ({100 * run.done / run.steps:.0f} %)" if run.steps else ""
    parts = [f"step {run.done} of {run.steps}{share}"]
    row = next((r for r in reversed(run.metrics) if is_number(r.get("loss"))), {})
    if row:
        parts.append(f"loss {row['loss']:.3f}")
    speed = row.get("images_per_s")
    if is_number(speed) and speed > 0:
        parts.append(f"{speed:.1f} images/s")
        batch = _images_a_step(run)
        if batch and run.steps > run.done:
            parts.append(f"about {_time((run.steps - run.done) * batch / speed)} left")
    silent = time.time() - run.folder.metrics.stat().st_mtime
    if silent > QUIET:
        parts.append(f"no new line for {_time(silent)}: slow, evaluating or stopped")
    return ", ".join(parts)


def _of_many(runs: list[RunRecord]) -> str:
    done = sum(run.result is not None for run in runs)
    active = [run for run in runs if run.result is None]
    text = f"{done} of {len(runs)} runs that have begun are finished"
    return text + "".join(f"; {run.path.parent.name}/{run.name}: {progress(run)}" for run in active)


def _every(run: RunRecord) -> int:
    return int((run.tree.get("train") or {}).get("log_every") or 1)


def _images_a_step(run: RunRecord) -> int:
    """Of a run of one process; 0 where several count, since the folder does not say how many."""
    if run.commands and run.commands[-1].startswith("torchrun"):
        return 0
    data, train = run.tree.get("data") or {}, run.tree.get("train") or {}
    size = int(data.get("batch_size") or 0)
    size += int((data.get("unlabelled") or {}).get("batch_size") or 0)
    return size * int(train.get("accumulate") or 1)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
