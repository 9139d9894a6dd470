"""Does a lever on the CPU pay? Steps with it against steps without it, interleaved, each in a process of its own.

    python -m benchmarks.levers [--case NAME ...] [--lever NAME ...] [--part distil|student] [--pairs 20]

The base is what a run does: allocator told to keep freed memory, float32, contiguous. A process each, because the
allocator's setting cannot be taken back; only one of them works at a time. The record also holds the page faults of a
step and the seconds that the kernel spent in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import measure
from benchmarks.cases import CASES
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
    """Child: build, then one timed call each time it is asked."""
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
    case: str, part: str, levers: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    children = []
    for name in ["base", *levers]:
        pipes[name], theirs = context.Pipe()
        child = context.Process(
            target=serve,
            args=(
                theirs, case, part, args.threads, args.clock, args.dry,
                {**LEVERS.get(name, {}), "size": tuple(args.size) if args.size else None},
            ),
            daemon=True,
        )  # fmt: skip
        child.start()
        theirs.close()  # a child that dies then ends our recv with EOFError
        children.append(child)

    def ask(name: str) -> float:
        pipes[name].send("step")
        return pipes[name].recv()

    pairs, warmup = (2, 1) if args.dry else (args.pairs, args.warmup)
    seconds = measure.interleave({n: lambda n=n: ask(n) for n in pipes}, pairs=pairs, warmup=warmup)
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.levers", description=__doc__.split("\n")[0]
    )
    measure.common_arguments(parser)
    standard = ["espnet_c_from_espnet", "espnet_from_psp_lite0"]
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=standard)
    parser.add_argument("--lever", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--part", choices=list(PARTS), default="distil")
    parser.add_argument("--size", nargs=3, type=int, metavar=("BATCH", "HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    path = measure.output_path(args.output, f"levers-{args.part}" + ("-dry" if args.dry else ""))
    cases = {}
    for case in args.case:
        print(f"{case} ...", flush=True)
        cases[case] = measure_levers(case, args.part, args.lever, args)
    measure.write(
        measure.record(
            "levers",
            torch.device("cpu"),
            pairs=2 if args.dry else args.pairs,
            threads=args.threads,
            clock=args.clock,
            cases=cases,
        ),
        path,
    )
    rows = [
        [
            case, name, f"{found['seconds'][name]['median']:.3f}",
            f"{r['median']:.3f} [{r['interval'][0]:.3f}, {r['interval'][1]:.3f}]",
            f"{(found['peak_bytes'][name] or 0) / 2**30:.2f}",
            *(f"{found[key][name]:.3g} ({found[key]['base']:.3g})" for key in ("page_faults", "kernel_seconds")),
        ]
        for case, found in cases.items()
        for name, r in found["ratio"].items()
    ]  # fmt: skip
    print(
        measure.table(
            [
                "pair",
                "lever",
                "s",
                "time over base",
                "peak GiB",
                "page faults (base)",
                "kernel s (base)",
            ],
            rows,
        )
    )
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
