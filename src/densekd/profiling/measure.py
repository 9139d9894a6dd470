"""How time and memory are measured: warm-up, arms interleaved in one run, medians with their spread.

A ratio is taken within a round, between calls that ran seconds apart, so a disturbance that slows the machine for a
while slows both. The interval is that of the median over rounds.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all work that was sent to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(call: Callable[[], Any], device: torch.device, clock: str = "wall") -> float:
    """The seconds of one call, including the device's work.

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
    """The seconds of each arm in each of `pairs` rounds; every other round goes backwards.

    Args:
        arms: name -> a function that does the work once and returns its seconds (see `timed`).
        warmup: rounds that are not counted.
    """
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; expected 1 or more")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(warmup + pairs):
        names = list(arms) if number % 2 == 0 else list(arms)[::-1]
        gc.collect()
        for name in names:
            value = arms[name]()
            if number >= warmup:
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
    """The sum of several arms, round by round."""
    return [sum(values) for values in zip(*parts, strict=True)]


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """The bytes at the peak of one call: tensors on a GPU, else the process's resident set (Linux), else None."""
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
