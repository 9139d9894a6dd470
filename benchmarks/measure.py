"""What the scripts share: options, the check of the output path, timing in rounds, the record and the tables."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from densekd.engine.folder import describe_environment
from densekd.profiling.machine import processor
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
    """The bytes of the tensors that a call makes, at their peak (CPU)."""
    # Garbage from before must not be freed, and so be counted, during the call.
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
    """The bytes that a call adds: as tensors and, on the CPU, as the growth of the process (see `in_fresh_process`)."""
    before = peak_memory(lambda: None, device)
    peak = peak_memory(call, device)
    grown = None if before is None or peak is None else peak - before
    if device.type == "cuda":
        return {"tensors": grown, "process": None}
    return {"tensors": tensor_peak(call), "process": grown}


def in_fresh_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """`call(*arguments)` in a process in which nothing has been allocated before."""
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
        "cpu": processor(),
        "load_average": [round(v, 2) for v in os.getloadavg()]
        if hasattr(os, "getloadavg")
        else None,
        "environment": describe_environment(),
        **fields,
    }


def command_line() -> str:
    """The command of this process; of an absolute path only the last name stays, so that no folder is told."""
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


def output_path(given: Path | None, name: str) -> Path:
    """`given`, or a dated name in results/benchmarks; ends the program where that file exists."""
    if given is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        given = RESULTS / f"{name}-{stamp}.json"
    if given.exists():
        raise SystemExit(f"--output {given} exists; give another path (nothing was measured)")
    return given


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write JSON; an existing file is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        json.dump(result, file, indent=2)
        file.write("\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pick(device: str, clock: str = "wall") -> torch.device:
    """The device; ends the program where there is none, or where the clock cannot be used with it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this PyTorch sees no CUDA device")
    if clock == "cpu" and (device != "cpu" or torch.get_num_threads() != 1):
        raise SystemExit(
            "--clock cpu needs --device cpu and OMP_NUM_THREADS=1: threads' times would add up"
        )
    return torch.device(device)


def make_parser(
    script: str, description: str | None, *, pairs: int = 20
) -> argparse.ArgumentParser:
    """The parser of ``python -m benchmarks.SCRIPT`` with the options that every script takes.

    Args:
        description: the script's docstring, of which the help shows the first line.
        pairs: the default of ``--pairs``.
    """
    assert description is not None
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{script}", description=description.split("\n")[0]
    )
    add = parser.add_argument
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--pairs", type=int, default=pairs, help="rounds that count")
    shared = "cpu: the process's own time, for a machine shared with others"
    add("--clock", default="wall", choices=["wall", "cpu"], help=shared)
    add("--warmup", type=int, default=2, help="rounds that do not count")
    add("--dry", action="store_true", help="tiny sizes and two rounds: does the script run?")
    add("--output", type=Path, help="JSON file; by default a dated one in results/benchmarks")
    return parser


@dataclass(frozen=True)
class Rounds:
    """How often calls are timed, and by which clock.

    Attributes:
        pairs: rounds that count.
        warmup: rounds before them that do not.
    """

    pairs: int
    warmup: int
    clock: str = "wall"

    def seconds(
        self, calls: Mapping[str, Callable[[], Any]], device: torch.device
    ) -> dict[str, list[float]]:
        """The seconds of every call in every round; within a round the calls take turns."""
        arms = {name: partial(timed, call, device, self.clock) for name, call in calls.items()}
        return self.interleaved(arms)

    def interleaved(self, arms: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        """The same of arms that return their seconds."""
        return interleave(dict(arms), pairs=self.pairs, warmup=self.warmup)


def begin(args: argparse.Namespace, name: str) -> tuple[Path, Rounds]:
    """The path that the record will have, and the rounds; ends the program where the path exists."""
    if args.dry:
        return output_path(args.output, f"{name}-dry"), Rounds(2, 1, args.clock)
    return output_path(args.output, name), Rounds(args.pairs, args.warmup, args.clock)


def finish(
    name: str, path: Path, device: torch.device, rounds: Rounds | None, *shown: str, **fields: Any
) -> int:
    """Write the record with `fields`, print what is `shown` and say where the record is; returns the exit status.

    Args:
        rounds: None where nothing was timed.
    """
    how = {} if rounds is None else vars(rounds)
    write(record(name, device, **how, **fields), path)
    print(*shown, sep="\n")
    told = (
        "" if rounds is None else f"median of {rounds.pairs} interleaved rounds [95 % interval]; "
    )
    print(f"{told}written to {path}")
    return 0


def one_by_one(names: Iterable[str], measured: Callable[[str], Any]) -> dict[str, Any]:
    """Name -> what was measured; each name is printed before its turn."""
    found = {}
    for name in names:
        print(f"{name} ...", flush=True)
        found[name] = measured(name)
    return found


def with_interval(found: Mapping[str, Any], digits: int = 3) -> str:
    """A median and its interval as text: ``1.012 [1.003, 1.020]``."""
    low, high = found["interval"]
    return f"{found['median']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def times(sizes: Iterable[int]) -> str:
    """A shape as text: ``2×64×64``."""
    return "×".join(map(str, sizes))
