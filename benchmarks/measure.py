"""How every script here measures: warm-up, arms interleaved in one run, medians with their spread, a full record.

A ratio is taken within a round, between calls that ran seconds apart, so what slows the machine for a while slows
both. The interval is that of the median over rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from densekd.engine.folder import describe_environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "benchmarks"


def synchronise(device: torch.device) -> None:
    """Wait for what the device was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device, clock: str = "wall") -> float:
    """Seconds of one call, the device's work included.

    Args:
        clock: ``"wall"``, or ``"cpu"``: this process's time on the cores, which leaves out waiting for a core that
            others use. On the CPU with one thread both mean the same on a quiet machine.
    """
    now = time.process_time if clock == "cpu" else time.perf_counter
    synchronise(device)
    begin = now()
    call()
    synchronise(device)
    return now() - begin


def interleave(
    arms: Mapping[str, Callable[[], float]], *, pairs: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each arm in each of `pairs` rounds; every other round goes backwards.

    Args:
        arms: name -> something that does the work once and returns its seconds (see `timed`).
        warmup: rounds that are not counted.
    """
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; expected 1 or more")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warmup + pairs):
        names = list(arms) if turn % 2 == 0 else list(arms)[::-1]
        gc.collect()
        for name in names:
            value = arms[name]()
            if turn >= warmup:
                seconds[name].append(value)
    return seconds


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles, and the 95 % interval of the median from order statistics (no distribution assumed)."""
    ordered = sorted(values)
    low, high = _interval(ordered)
    quartiles = (
        statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    )
    return {
        "median": statistics.median(ordered),
        "quartiles": [quartiles[0], quartiles[2]],
        "interval": [low, high],
        "count": len(ordered),
    }


def _interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair x(k), x(n+1-k) that holds the median with at least 95 %; below 6 values, their range."""
    n, k, below = len(ordered), 0, 0.0
    while k < n // 2 and 2 * (below + math.comb(n, k) / 2**n) <= 0.05:
        below += math.comb(n, k) / 2**n
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """`spread` of the ratios round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def total(*parts: Sequence[float]) -> list[float]:
    """Sum of several arms round by round."""
    return [sum(values) for values in zip(*parts, strict=True)]


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes at the peak of one call: tensors on a GPU, else the process's resident set (Linux), else None."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        call()
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")
    )


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
    """How this process was started, without the folders of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"-m {spec.name}" if spec else Path(sys.argv[0]).name
    return f"python {name} {shlex.join(sys.argv[1:])}".strip()


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


def pick(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this PyTorch sees no CUDA device")
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
