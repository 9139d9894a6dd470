"""What the sums of losses over ranks cost a step on two gloo processes.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.collectives [--case NAME ...] [--pairs 10] [--output FILE]

Steps with and without `over_ranks`, that is with means over all ranks or over a rank's own images, are taken in turns
by the same networks. The calls of `all_reduce` that densekd makes are counted, with their bytes (DDP's exchange of
gradients, which both have, is not among them), and as many of the same sizes are timed by themselves at the end.
"""

from __future__ import annotations

import argparse
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import measure
from benchmarks.cases import CASES, SIZE, make_case
from densekd.build.step import build_step
from densekd.distill import distiller as distiller_module
from densekd.engine.launch import Process, started
from densekd.ops import collectives


@contextmanager
def alone():
    """No means over ranks within."""
    original = distiller_module.over_ranks
    distiller_module.over_ranks = lambda enabled=True: original(False)
    try:
        yield
    finally:
        distiller_module.over_ranks = original


@contextmanager
def counted(sizes: list[tuple[int, torch.dtype]]):
    """Collect the sizes of densekd's own calls of all_reduce."""
    original = dist.all_reduce

    def call(x, *arguments, **more):
        sizes.append((x.numel(), x.dtype))
        return original(x, *arguments, **more)

    collectives.dist.all_reduce = call
    try:
        yield
    finally:
        collectives.dist.all_reduce = original


def measure_case(
    name: str, process: Process, pairs: int, dry: bool, size: tuple[int, int, int] | None
) -> dict[str, Any]:
    config, distiller, batch = make_case(CASES[name], process.device, size=size, dry=dry)
    step = build_step(config, distiller, process)
    taken: dict[str, list[float]] = {"with": [], "without": []}
    calls: dict[str, list[tuple[int, torch.dtype]]] = {}
    for number in range(pairs + 1):  # the first pair warms up
        for kind in ("with", "without") if number % 2 else ("without", "with"):
            sizes: list[tuple[int, torch.dtype]] = []
            dist.barrier()
            begin = time.perf_counter()
            with counted(sizes):
                if kind == "with":
                    step([batch], number)
                else:
                    with alone():
                        step([batch], number)
            if number:
                taken[kind].append(time.perf_counter() - begin)
            calls[kind] = sizes
    tensors = [torch.zeros(count, dtype=dtype) for count, dtype in calls["with"]]
    bare = []
    for _ in range(pairs):
        dist.barrier()
        begin = time.perf_counter()
        for tensor in tensors:
            dist.all_reduce(tensor)
        bare.append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(taken["with"], taken["without"], strict=True)]
    return {
        "calls": len(calls["with"]),
        "calls_without": len(calls["without"]),
        "bytes": sum(count * dtype.itemsize for count, dtype in calls["with"]),
        "with": measure.spread(taken["with"]),
        "without": measure.spread(taken["without"]),
        "ratio": measure.spread(ratios),
        "all_reduce_alone": measure.spread(bare),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=["espnet_c_from_espnet"])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--dry", action="store_true", help="tiny networks; the numbers say nothing")
    parser.add_argument("--size", **SIZE, help="of a rank's batch, in place of the case's own")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with started("cpu") as process:
        found = {
            name: measure_case(name, process, given.pairs, given.dry, given.size)
            for name in given.case
        }
        if process.rank:
            return
        head = ["pair", "calls", "bytes", "step with ms", "without ms", "ratio", "calls alone ms"]
        rows = [
            [
                name,
                f"{row['calls']} ({row['calls_without']} without)",
                str(row["bytes"]),
                f"{1000 * row['with']['median']:.0f}",
                f"{1000 * row['without']['median']:.0f}",
                f"{row['ratio']['median']:.3f}",
                f"{1000 * row['all_reduce_alone']['median']:.2f}",
            ]
            for name, row in found.items()
        ]
        print(measure.table(head, rows))
        if given.output:
            result = measure.record(
                "collectives",
                process.device,
                processes=process.world_size,
                size=given.size,
                cases=found,
            )
            measure.write(result, given.output)


if __name__ == "__main__":
    main()
