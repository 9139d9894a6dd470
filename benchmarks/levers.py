"""Does a lever on the CPU save time? Steps with it against steps without it, interleaved, each in its own process.

    python -m benchmarks.levers [--case NAME ...] [--lever NAME ...] [--part distil|student] [--pairs 20]

The base is a plain run: the allocator keeps freed memory, float32, contiguous. Each lever has a process of its own,
because the allocator's setting cannot be taken back; only one of them works at a time. The record also holds the page
faults of a step and the seconds that the kernel spent in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import measure
from benchmarks.cases import CASES, SIZE
from benchmarks.step import make_arms
from densekd.engine.launch import keep_freed_memory

LEVERS: dict[str, dict[str, Any]] = {
    "allocator_untouched": {"keep": False},
    "channels_last": {"channels_last": True},
    "bf16": {"amp": "bf16"},
    "bf16_channels_last": {"amp": "bf16", "channels_last": True},
}
PARTS = {"distil": "pi_pa", "distil_ho": "pi_pa_ho", "student": "student", "teacher": "teacher"}


def serve(
    pipe: Connection,
    case: str,
    part: str,
    threads: int,
    clock: str,
    dry: bool,
    options: dict[str, Any],
) -> None:
    """The child: it builds the part, then times one call each time it is asked."""
    torch.set_num_threads(threads)
    options = dict(options)
    if options.pop("keep", True):
        keep_freed_memory()
    device = torch.device("cpu")
    arms, _ = make_arms(CASES[case], device, dry=dry, **options)
    call = arms[PARTS[part]]
    while pipe.recv() == "step":
        pipe.send(measure.timed(call, device, clock))
    peak = measure.peak_memory(call, device)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(3):
        call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send(
        {
            "peak_bytes": peak,
            "page_faults": (after.ru_minflt - before.ru_minflt) / 3,
            "kernel_seconds": (after.ru_stime - before.ru_stime) / 3,
        }
    )


def measure_levers(
    case: str, part: str, levers: list[str], rounds: measure.Rounds, args: argparse.Namespace
) -> dict[str, Any]:
    """The time of a part with every lever over its time without one; a process each."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    children = []
    for name in ["base", *levers]:
        pipes[name], far = context.Pipe()
        child = context.Process(
            target=serve,
            args=(
                far, case, part, args.threads, rounds.clock, args.dry,
                {**LEVERS.get(name, {}), "size": tuple(args.size) if args.size else None},
            ),
            daemon=True,
        )  # fmt: skip
        child.start()
        far.close()  # a child that dies then ends our recv with EOFError
        children.append(child)

    def ask(name: str) -> float:
        pipes[name].send("step")
        return pipes[name].recv()

    seconds = rounds.interleaved({name: partial(ask, name) for name in pipes})
    last = {}
    for name, pipe in pipes.items():
        pipe.send("end")
        last[name] = pipe.recv()
    for child in children:
        child.join(timeout=10)
    return {
        "part": part,
        "seconds": {name: measure.spread(values) for name, values in seconds.items()},
        "ratio": {name: measure.ratio(seconds[name], seconds["base"]) for name in levers},
        **{key: {name: last[name][key] for name in last} for key in last["base"]},
        "raw_seconds": seconds,
    }


def as_table(cases: dict[str, dict[str, Any]]) -> str:
    head = [
        "pair",
        "lever",
        "s",
        "time over base",
        "peak GiB",
        "page faults (base)",
        "kernel s (base)",
    ]
    rows = [
        [
            case, name, f"{found['seconds'][name]['median']:.3f}", measure.with_interval(ratio),
            f"{(found['peak_bytes'][name] or 0) / 2**30:.2f}",
            *(f"{found[key][name]:.3g} ({found[key]['base']:.3g})" for key in ("page_faults", "kernel_seconds")),
        ]
        for case, found in cases.items()
        for name, ratio in found["ratio"].items()
    ]  # fmt: skip
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("levers", __doc__)
    standard = ["espnet_c_from_espnet", "espnet_from_psp_lite0"]
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=standard)
    parser.add_argument("--lever", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--part", choices=list(PARTS), default="distil")
    parser.add_argument("--size", **SIZE)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    path, rounds = measure.begin(args, f"levers-{args.part}")
    cases = measure.one_by_one(
        args.case, lambda case: measure_levers(case, args.part, args.lever, rounds, args)
    )
    return measure.finish(
        "levers", path, torch.device("cpu"), rounds, as_table(cases), threads=args.threads, cases=cases
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
