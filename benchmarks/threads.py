"""How many threads should compute beside how many loader workers? Times of a real run's loader and step, wall clock.

    python -m benchmarks.threads --camvid FOLDER [--workers 0 1 2] [--threads 1 2] [--pairs 6]

Each combination is a process of its own, since a pool of threads cannot be made anew; only one of them works at a time,
and the workers of the others rest with full queues. A turn is some steps; the first few are not timed, because they
use the batches that the workers had ready. Without --camvid the script takes the built-in scenes.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Generator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import measure
from densekd.build.data import build_augment, build_reader, build_train_loader
from densekd.build.distiller import build_distiller
from densekd.build.step import build_step
from densekd.build.task import build_task
from densekd.config.load import load_config
from densekd.engine.launch import Process, available_cores, keep_freed_memory
from densekd.types import Batch

RECIPE = "camvid/espnet_c_from_espnet"


def batches(overrides: dict[str, Any]) -> tuple[Generator[Batch], Any]:
    """A run's endless batches, and its step."""
    config = load_config(RECIPE, overrides)
    device = torch.device("cpu")
    reader = build_reader(config.data, config.data.train_split, training=True)
    task = build_task(config, reader)
    torch.manual_seed(0)
    distiller, spec = build_distiller(config, task, distil=True, device=device)
    augment = build_augment(config.data, reader, spec)
    process = Process(0, 1, device)
    loader = build_train_loader(config, reader, augment, process, 0)
    stream = iter(loader)
    assert isinstance(stream, Generator)
    return stream, build_step(config, distiller, process)


def serve(
    pipe: Connection, threads: int, spare: int, steps: int, overrides: dict[str, Any]
) -> None:
    """The child: it builds the run, then sends the seconds of a step each time it is asked."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    stream, step = batches(overrides)
    done = 0
    while pipe.recv() == "go":
        for turn in range(spare + steps):
            if turn == spare:
                begin = time.perf_counter()
            step([next(stream).to(torch.device("cpu"))], done)
            done += 1
        pipe.send((time.perf_counter() - begin) / steps)
    stream.close()  # ends the workers


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("threads", __doc__, pairs=6)
    parser.add_argument("--camvid", help="folder of CamVid")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--steps", type=int, default=6, help="timed in a turn")
    args = parser.parse_args(arguments)
    if args.clock != "wall" or args.device == "cuda":
        raise SystemExit(
            "only the wall clock of the CPU shows what waits for what: leave --clock and --device out"
        )
    path, rounds = measure.begin(args, "threads")
    overrides: dict[str, Any] = {
        "data.batch_size": args.batch,
        "teacher.allow_untrained": True,
        "optim.lr": 1e-6,
    }
    if args.camvid:
        overrides["data.root"] = args.camvid
    else:
        overrides["data.dataset"] = "scenes"
    if args.dry:
        overrides |= {"data.crop": [64, 64], "model.options": {"p": 1, "q": 1}}
        overrides |= {"teacher.options": {"p": 1, "q": 1}}
    steps = 1 if args.dry else args.steps

    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for workers in args.workers:
        for threads in args.threads:
            name = f"workers {workers}, threads {threads}"
            pipes[name], far = context.Pipe()
            given = {**overrides, "data.workers": workers}
            # Not daemonic: daemons may have no workers of their own. A child ends with its pipe.
            context.Process(
                target=serve, args=(far, threads, 2 * workers + 1, steps, given)
            ).start()
            far.close()

    def ask(name: str) -> float:
        pipes[name].send("go")
        return pipes[name].recv()

    try:
        seconds = rounds.interleaved({name: partial(ask, name) for name in pipes})
    finally:
        for pipe in pipes.values():
            pipe.send("end")
    first = next(iter(pipes))
    found = {
        name: {"seconds": measure.spread(values), "ratio": measure.ratio(values, seconds[first])}
        for name, values in seconds.items()
    }
    rows = [
        [name, f"{f['seconds']['median']:.3f}", measure.with_interval(f["ratio"])]
        for name, f in found.items()
    ]
    return measure.finish(
        "threads", path, torch.device("cpu"), rounds, measure.table(["", "s a step", f"over {first}"], rows),
        recipe=RECIPE, data="camvid" if args.camvid else "scenes", batch=args.batch, cores=available_cores(),
        allowed=len(os.sched_getaffinity(0)), arms=found, raw_seconds=seconds,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
