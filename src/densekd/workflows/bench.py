"""`bench`: where a recipe's step spends its time, on this machine; nothing is trained and no run folder made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from densekd.build.data import (
    build_augment,
    build_device_loader,
    build_reader,
    build_train_loader,
    check_reader,
)
from densekd.build.distiller import build_distiller
from densekd.build.dry_run import dry_run, example_batch
from densekd.build.step import build_step
from densekd.build.task import build_task
from densekd.config.load import to_tree
from densekd.config.schema import Config, Distill
from densekd.data.augment import Augment
from densekd.distill.distiller import Distiller
from densekd.engine.folder import describe_environment
from densekd.engine.launch import Process, available_cores, started
from densekd.engine.optim import set_lr
from densekd.engine.step import Step
from densekd.errors import DataError, UserError
from densekd.profiling.measure import peak_memory, spread, total
from densekd.profiling.step_time import TEACHER, in_blocks, time_loop, time_step
from densekd.types import Batch
from densekd.workflows.cache import cached_readers
from densekd.workflows.run import first_batch
from densekd.workflows.validate import stand_in_reader

WARMUP = 3
WAIT, MOVE = "data wait", "to the device"
# torch's loader keeps so many batches a worker ready.
AHEAD = 2
# Shares and ratios from which advice is given.
LONG_WAIT, LARGE_TEACHER, FLOOR_AIM, SHARED_CORES = 0.1, 0.3, 1.05, 1.1


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
    distil = bool(config.teacher or config.distill.terms or config.distill.holistic)
    if not distil:
        config = replace(config, teacher=None, distill=Distill())
    config, remarks = _live_teacher(config)
    with ExitStack() as stack:
        process = stack.enter_context(started(device, deterministic=config.train.deterministic))
        if process.world_size > 1:
            raise UserError("bench measures one process; start it without torchrun or srun")
        reader = stand_in_reader(config) if made_up else _reader(config)
        task = build_task(config, reader)
        torch.manual_seed(config.seed)
        distiller, spec = build_distiller(config, task, distil=distil, device=process.device)
        if made_up:
            batch = _made_up_batch(config, task, process)
            few = batch
            stream = None
            remarks.append("images and targets are made up: the data's own cost is not measured")
        else:
            augment = build_augment(config.data, reader, spec)
            batch = first_batch(config, reader, augment, process)
            few = first_batch(_of_two(config), reader, augment, process)
            stream = _loader(config, reader, augment, process)
        dry_run(distiller, few)
        step = build_step(config, distiller, process)
        for optimizer in (step.optimizer, step.discriminator_optimizer):
            if optimizer is not None:
                set_lr(optimizer, 0.0)
        group = [batch.to(process.device, config.train.channels_last)] * config.train.accumulate
        result: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(process.device),
            "environment": describe_environment(),
            "student": config.model.name,
            "teacher": None if config.teacher is None else config.teacher.name,
            "classes": len(task.classes),
            "batch": list(batch.images.shape),
            "accumulate": config.train.accumulate,
            "steps": steps,
            "warmup": WARMUP,
            "made_up": made_up,
            **_in_the_loop(config, step, stream, group, steps),
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


def _live_teacher(config: Config) -> tuple[Config, list[str]]:
    """The recipe with a teacher that can be asked: random where it names no weights, which costs the same."""
    teacher, remarks = config.teacher, []
    if teacher is not None and teacher.weights is None and not teacher.allow_untrained:
        config = replace(config, teacher=replace(teacher, allow_untrained=True))
        remarks.append(
            "the recipe names no teacher.weights: a random teacher, which costs the same"
        )
    if config.distill.teacher_cache is not None:
        remarks.append("distill.teacher_cache is left out: the live teacher is measured")
    return config, remarks


def _reader(config: Config) -> Any:
    try:
        reader = build_reader(config.data, config.data.train_split, training=True)
    except UserError as error:
        if config.data.root is None or isinstance(error, DataError):
            raise type(error)(f"{error}\nWithout the data, --made-up takes random images.") from error  # fmt: skip
        raise
    check_reader(reader, config)
    return reader


def _loader(config: Config, reader: Any, augment: Augment, process: Process) -> Any:
    """As in a run, which decodes its validation set too."""
    if config.data.cache is not None:
        val_reader = build_reader(config.data, config.data.val_split, training=False)
        reader, _ = cached_readers(config, reader, val_reader, process, stop=False)
    if config.data.cache == "device":
        return build_device_loader(config, reader, augment, process, 0)
    return build_train_loader(config, reader, augment, process, 0)


def _of_two(config: Config) -> Config:
    """As in a run: the dry run looks at a few images, not at a whole batch."""
    return replace(config, data=replace(config.data, batch_size=min(2, config.data.batch_size)))


def _made_up_batch(config: Config, task: Any, process: Process) -> Batch:
    if config.data.crop is None:
        raise UserError(
            "--made-up makes images of the crop's size, and the recipe has no data.crop; give --data.crop '[H, W]'"
        )
    return example_batch(
        task, config.model.in_channels, config.data.crop, process.device, config.data.batch_size
    )


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
    workers = config.data.workers

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


# --- for people ---------------------------------------------------------------------------------------------------


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Row's name -> spread of its seconds, in the order of a step."""
    loop = {name: result["loop"][name] for name in (WAIT, MOVE) if result["loop"][name]}
    return {**loop, **result["parts"]}


def shares(result: dict[str, Any]) -> dict[str, float]:
    """Row's name -> its share of all rows' medians."""
    medians = {name: row["median"] for name, row in rows(result).items()}
    return {name: value / sum(medians.values()) for name, value in medians.items()}


def advice(config: Config, result: dict[str, Any]) -> list[str]:
    """What the numbers say should be tried; nothing where they say nothing."""
    share, lines = shares(result), []
    wait = share.get(WAIT, 0.0)
    if wait >= LONG_WAIT:
        cores, workers = available_cores(), config.data.workers
        remedies = []
        if workers < cores - 1:
            remedies.append(f"raise data.workers (now {workers}; {cores} cores here)")
        if config.data.cache is None:
            remedies.append("set data.cache (disk, ram or device)")
        remedy = " or ".join(remedies) or "reading and augmenting take all cores"
        lines.append(f"{WAIT} is {wait:.0%} of the step: {remedy}")
    found = result["ratio"]
    if found is not None and found["interval"][0] > FLOOR_AIM:
        terms = {k: v["median"] for k, v in result["parts"].items() if k.startswith("distill/")}
        dearest = max(terms, key=lambda name: terms[name])
        lines.append(
            f"the step takes {found['median'] - 1:.0%} more than its floor; the dearest term is {dearest} "
            f"({_ms(terms[dearest])} ms forward)"
        )
    beside, at_hand = result["loop"]["step"], result["step"]
    if beside["interval"][0] > SHARED_CORES * at_hand["interval"][1]:
        lines.append(
            f"in the loop a step takes {beside['median'] / at_hand['median']:.1f} times as long as on a batch at hand: "
            "loaders or other programs share its cores"
        )
    teacher = config.teacher
    in_float32 = (
        teacher is not None
        and config.train.amp == "none"
        and teacher.precision in ("same", "fp32")
        and result["device"].startswith("cuda")
    )
    if share.get(TEACHER, 0.0) >= LARGE_TEACHER and in_float32:
        lines.append(
            f"the teacher is {share[TEACHER]:.0%} of the step, in float32: try teacher.precision bf16"
        )
    return lines


def as_text(result: dict[str, Any]) -> str:
    """The table and what stands beside it."""
    pair = result["student"] + (f" from {result['teacher']}" if result["teacher"] else " alone")
    batch = "×".join(map(str, result["batch"]))
    if result["accumulate"] > 1:
        batch = f"{result['accumulate']} × {batch}"
    share = shares(result)
    cells = [
        [name, _ms(row["median"]), _interval(row, _ms), f"{share[name]:.1%}"]
        for name, row in rows(result).items()
    ]
    whole = result["loop"]["seconds"]
    cells.append(["one step in the loop", _ms(whole["median"]), _interval(whole, _ms), ""])
    speed = result["images_per_s"]
    lines = [
        f"{pair}, {batch}, {result['classes']} classes, {result['device']}, threads "
        f"{result['environment']['threads']}; medians of {result['steps']} [95 % interval]",
        "",
        *_table(["part", "ms", "95 % interval", "share"], cells),
        "",
        f"{speed['median']:.2f} images/s {_interval(speed, '{:.2f}'.format)}; {_memory(result)}",
    ]
    if result["ratio"] is not None:
        floor = " + ".join(f"{k} {_ms(v['median'])}" for k, v in result["floor"].items())
        lines.append(
            f"over its floor: {result['ratio']['median']:.3f} {_interval(result['ratio'], '{:.3f}'.format)} = "
            f"step {_ms(result['step']['median'])} / ({floor}) ms"
        )
    lines += [f"remark: {remark}" for remark in result["remarks"]]
    lines += [f"advice: {line}" for line in result["advice"]]
    return "\n".join(lines)


def _memory(result: dict[str, Any]) -> str:
    peak = result["peak_bytes"]
    if peak is None:
        return "peak memory unknown on this system"
    if "device_bytes" in result:
        return (
            f"{_gib(peak)} of {_gib(result['device_bytes'])} GiB of the device's memory at the peak"
        )
    return f"{_gib(peak)} GiB of memory at the peak, for the whole process without its loaders"


def _table(head: list[str], cells: list[list[str]]) -> list[str]:
    """Markdown whose columns line up in a terminal too: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        aligned = [row[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(head), line(rule), *map(line, cells)]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _interval(row: dict[str, Any], form: Callable[[float], str]) -> str:
    low, high = row["interval"]
    return f"[{form(low)}, {form(high)}]"


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
