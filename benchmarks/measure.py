"""What every script here shares: how it measures (densekd.profiling.measure), its arguments, a full record."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from densekd.engine.folder import describe_environment
from densekd.profiling.measure import (  # noqa: F401 (the scripts call them by this module's name)
    interleave,
    peak_memory,
    ratio,
    spread,
    synchronise,
    timed,
    total,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "benchmarks"


def tensor_peak(call: Callable[[], Any]) -> int:
    """Bytes of the tensors that a call makes, at their peak (CPU)."""
    # What others left behind must not be freed, and so counted, in between.
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            call()
    finally:
        if collecting:
            gc.enable()
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def extra_memory(call: Callable[[], Any], device: torch.device) -> dict[str, int | None]:
    """Bytes that a call adds: as tensors and, on the CPU, as the process grows (see `in_fresh_process`)."""
    before = peak_memory(lambda: None, device)
    peak = peak_memory(call, device)
    grown = None if before is None or peak is None else peak - before
    if device.type == "cuda":
        return {"tensors": grown, "process": None}
    return {"tensors": tensor_peak(call), "process": grown}


def in_fresh_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """`call(*arguments)` where nothing has been allocated before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def record(name: str, device: torch.device, **fields: Any) -> dict[str, Any]:
    """What a reader needs to repeat the number, and `fields`."""
    return {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "commit": _commit(),
        "device": str(device),
        "cpu": _cpu_name(),
        "load_average": [round(v, 2) for v in os.getloadavg()]
        if hasattr(os, "getloadavg")
        else None,
        "environment": describe_environment(),
        **fields,
    }


def command_line() -> str:
    """How this process was started, without the folders of this machine: of absolute paths the last name alone."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {spec.name}" if spec else Path(sys.argv[0]).name
    words = []
    for word in sys.argv[1:]:
        option, equals, value = word.rpartition("=")
        words.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return f"python {name} {shlex.join(words)}".strip()


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()


def output_path(given: Path | None, name: str) -> Path:
    """`given`, or a dated name of our own; ends the program where that file exists."""
    if given is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        given = RESULTS / f"{name}-{stamp}.json"
    if given.exists():
        raise SystemExit(f"--output {given} exists; give another path (nothing was measured)")
    return given


def write(result: Mapping[str, Any], path: Path) -> None:
    """JSON; never over an existing file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        json.dump(result, file, indent=2)
        file.write("\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pick(device: str, clock: str = "wall") -> torch.device:
    """The device; ends the program where there is none, or where that clock tells nothing."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this PyTorch sees no CUDA device")
    if clock == "cpu" and (device != "cpu" or torch.get_num_threads() != 1):
        raise SystemExit(
            "--clock cpu needs --device cpu and OMP_NUM_THREADS=1: threads' times would add up"
        )
    return torch.device(device)


def common_arguments(parser: argparse.ArgumentParser, *, pairs: int = 20) -> None:
    """What every script takes."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--pairs", type=int, default=pairs, help="rounds that count")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="cpu: on a machine shared with others",
    )
    parser.add_argument("--warmup", type=int, default=2, help="rounds that do not")
    parser.add_argument(
        "--dry", action="store_true", help="tiny sizes and two rounds: does it run?"
    )
    parser.add_argument(
        "--output", type=Path, help="JSON file; by default a dated one in results/benchmarks"
    )
