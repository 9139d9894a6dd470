"""`bench`: where a recipe's step spends its time, on this machine; nothing is trained and no run folder made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from densekd.build.data import (
    build_reader,
    loader_processes,
)
from densekd.build.run import Run, assemble
from densekd.config.load import to_tree
from densekd.config.schema import Config
from densekd.distill.distiller import Distiller
from densekd.engine.folder import describe_environment
from densekd.engine.launch import started
from densekd.engine.optim import set_lr
from densekd.engine.step import Step
from densekd.errors import UserError
from densekd.profiling.measure import peak_memory, spread, total
from densekd.profiling.step_time import in_blocks, time_loop, time_step
from densekd.types import Batch
from densekd.workflows.bench_text import MOVE, WAIT, advice
from densekd.workflows.cache import cached_readers
from densekd.workflows.forms import settled, training_set, with_random_teacher, without_store

WARMUP = 3
# torch's loader keeps so many batches a worker ready.
AHEAD = 2


def bench(
    config: Config, *, steps: int = 20, device: str = "auto", made_up: bool = False
) -> dict[str, Any]:
    """Time `config`'s step as a run would take it: with its data, its teacher and its terms.

    Weights are as a run starts with them, and stay so: the learning rates are 0. A teacher without weights is a
    random one here.

    Args:
        steps: that count: so many in the loop, and so many rounds on a batch at hand.
        made_up: random images of the crop's size in place of the data.

    Returns:
        plain numbers, lists and dicts: all of what `as_text` shows, every single time, settings and environment.
    """
    if config.teachers:
        raise UserError(
            "teachers: bench takes the step apart for one teacher; name one as teacher and set teachers to null"
        )
    distil = bool(config.teacher or config.distill.terms or config.distill.holistic)
    if not distil:
        config = settled(config, distil)
    config, remarks = with_random_teacher(config)
    if config.distill.teacher_cache is not None:
        remarks.append("distill.teacher_cache is left out: the live teacher is measured")
    if made_up:
        remarks.append("images and targets are made up: the data's own cost is not measured")
    with ExitStack() as stack:
        process = stack.enter_context(started(device, deterministic=config.train.deterministic))
        if process.world_size > 1:
            raise UserError("bench measures one process; start it without torchrun or srun")
        run = assemble(
            without_store(config),
            process,
            distil=distil,
            sets=training_set(config, made_up=made_up),
        )
        step = run.step
        for optimizer in (step.optimizer, step.discriminator_optimizer):
            if optimizer is not None:
                set_lr(optimizer, 0.0)
        batch = run.first_batch().to(process.device, config.train.channels_last)
        group = [batch] * config.train.accumulate
        result: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(process.device),
            "environment": describe_environment(),
            "student": config.model.name,
            "teacher": None if config.teacher is None else config.teacher.name,
            "classes": len(run.task.classes),
            "batch": list(batch.images.shape),
            "accumulate": config.train.accumulate,
            "steps": steps,
            "warmup": WARMUP,
            "made_up": made_up,
            **_in_the_loop(config, step, None if made_up else _loader(run), group, steps),
        }
        alone = _alone(config, step) if distil else None
        calls = 2 if alone is None else 4 if step.discriminator_optimizer is None else 5
        with _bar("rounds on one batch", calls * (WARMUP + steps)) as tick:
            at_hand = time_step(
                step, group, alone=alone, rounds=steps, warmup=WARMUP, progress=tick
            )
    raw = {**result.pop("raw_seconds"), **at_hand.pop("raw_seconds")}
    result = {**result, **at_hand, "remarks": remarks}
    return {**result, "advice": advice(config, result), "config": to_tree(config), "raw_seconds": raw}  # fmt: skip


def _loader(run: Run) -> Any:
    """The run's own batches. As a run does, it decodes the validation set too where there is a cache."""
    data = run.config.data
    if data.cache is not None:
        val_set = build_reader(data, data.val_split, training=False)
        sets = cached_readers(run.config, run.train_set, val_set, run.process, stop=False)
        run = run.with_sets(*sets)
    return run.train_loader(0, skipped={})


def _alone(config: Config, step: Step) -> Step:
    """The student's own step: no teacher and no terms; optimizer and average shared."""
    return Step(
        Distiller(step.distiller.student, step.distiller.task),
        step.optimizer,
        amp=config.train.amp,
        clip=config.optim.clip,
        ema=step.ema,
        device=step.device,
    )


def _in_the_loop(
    config: Config, step: Step, loader: Any, group: list[Batch], steps: int
) -> dict[str, Any]:
    """Images/s, peak memory, and what a run waits for between its steps."""
    seconds: dict[str, list[float]] = {}
    workers = loader_processes(config.data)

    def loop() -> None:
        stream = iter(_forever(group) if loader is None else loader)
        with _bar("steps in the loop", WARMUP + steps) as tick:
            seconds.update(
                time_loop(
                    step,
                    stream,
                    steps=steps,
                    warmup=WARMUP,
                    ahead=0 if loader is None else AHEAD * workers,
                    accumulate=config.train.accumulate,
                    channels_last=config.train.channels_last,
                    progress=tick,
                )
            )

    peak = peak_memory(loop, step.device)
    size = max(1, workers)
    loop_seconds = in_blocks(total(*seconds.values()), size)
    images = len(group[0]) * config.train.accumulate
    memory: dict[str, Any] = {"peak_bytes": peak}
    if step.device.type == "cuda":
        memory["device_bytes"] = torch.cuda.get_device_properties(step.device).total_memory
    return {
        **memory,
        "images_per_s": spread([images / s for s in loop_seconds]),
        "loop": {
            "seconds": spread(loop_seconds),
            "step": spread(in_blocks(seconds["step"], size)),
            WAIT: None if loader is None else spread(in_blocks(seconds["wait"], size)),
            MOVE: None if loader is None else spread(in_blocks(seconds["move"], size)),
        },
        "raw_seconds": {f"loop {name}": values for name, values in seconds.items()},
    }


def _forever(group: Sequence[Batch]) -> Any:
    while True:
        yield from group


@contextmanager
def _bar(title: str, count: int) -> Any:
    with Progress(transient=True) as progress:
        bar = progress.add_task(title, total=count)
        yield lambda: progress.advance(bar)


def check_output(path: Path) -> None:
    """Said before any work."""
    if path.exists():
        raise UserError(f"--output {path} exists; give another path (nothing was measured)")


def write(result: dict[str, Any], path: Path) -> None:
    """JSON; never over an existing file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
