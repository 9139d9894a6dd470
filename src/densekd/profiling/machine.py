"""What this machine does with a number format, and how much memory it has left; measured in well under a second."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import torch.nn.functional as F

from densekd.profiling.measure import timed

BUDGET, MOST = 0.2, 10  # seconds, and calls of each, up to which fast calls are repeated


@torch.no_grad()
def reduced_precision_ratio(
    dtype: torch.dtype, device: torch.device, *, repeats: int = 2, side: int = 32
) -> float:
    """The time of a 3x3 convolution (64 to 64 channels) under autocast to `dtype`, over its time in float32.

    Well above 1 where the processor has no instructions for `dtype` and emulates them. The least time of at least
    `repeats` calls counts, since whatever else the machine does only adds time. No random number is drawn.
    """
    images = torch.full((1, 64, side, side), 0.5, device=device)
    weight = torch.full((64, 64, 3, 3), 0.01, device=device)

    def convolve(reduced: bool) -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=reduced):
            F.conv2d(images, weight, padding=1)

    seconds: dict[bool, list[float]] = {False: [], True: []}
    spent = 0.0
    while len(seconds[True]) <= repeats or (spent < BUDGET and len(seconds[True]) <= MOST):
        for reduced, values in seconds.items():
            values.append(timed(lambda reduced=reduced: convolve(reduced), device))
            spent += values[-1]
    # The first call of each chooses its kernel.
    return min(seconds[True][1:]) / min(seconds[False][1:])


def processor() -> str:
    """The processor's name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def free_memory(device: torch.device | None = None) -> int | None:
    """Bytes that can still be taken: of a GPU, or of this machine within its control group; None where unknown."""
    if device is not None and device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        try:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (OSError, ValueError):
            return None
    try:  # control groups, version 2
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        return min(free, most - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return free
