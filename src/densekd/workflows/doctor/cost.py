"""What a run will take: whether its step runs at all, and its time, memory and disk."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densekd.build.data import build_train_loader
from densekd.build.run import Run
from densekd.config.schema import Config
from densekd.data.cache.fill import Filling
from densekd.distill.source import LiveTeacher, SeveralTeachers
from densekd.distill.stored.plan import make_plan
from densekd.engine.launch import available_cores
from densekd.engine.optim import set_lr
from densekd.errors import UserError
from densekd.ops.files import cache_folder
from densekd.ops.names import bytes_text
from densekd.profiling.machine import free_memory
from densekd.profiling.measure import peak_memory, synchronise
from densekd.profiling.step_time import LATE
from densekd.workflows.doctor.finding import Finding
from densekd.workflows.doctor.machine import disk_finding

AREA = "cost"
LONG = 24 * 3600.0  # seconds from which a run is long
NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Steps:
    """A few real steps.

    Attributes:
        step: seconds of the computing of one, the first left out.
        read: seconds of reading and augmenting one's images in one process.
        peak: bytes at the peak; None where it cannot be told.
    """

    step: float
    read: float
    peak: int | None


def norm_findings(config: Config, network: nn.Module) -> list[Finding]:
    """Batch norms that see one image at a time."""
    second = config.data.unlabelled
    size = config.data.batch_size + (0 if second is None else second.batch_size)
    norms = sum(isinstance(module, NORMS) for module in network.modules())
    if size > 1 or not norms:
        return []
    what = f"batches of one image, and {norms} batch norms, whose statistics are then those of that image"
    advice = "Take data.batch_size 2 or more; train.accumulate does not help here"
    return [Finding("warning", AREA, what, advice, "data.batch_size")]


def take_steps(run: Run, count: int = 2) -> Steps:
    """`count` steps of the run and one before, at learning rate 0, saving nothing.

    Raises:
        UserError: a step cannot be taken.
    """
    config, step = run.config, run.step
    for optimizer in (step.optimizer, step.discriminator_optimizer):
        if optimizer is not None:
            set_lr(optimizer, 0.0)
    config = replace(config, data=replace(config.data, workers=0))
    loader = build_train_loader(
        config, run.train_set, run.augment, run.process, 0, unlabelled=run.unlabelled_set
    )
    batches = iter(loader)
    computing: list[float] = []
    reading: list[float] = []

    def steps() -> None:
        for _ in range(count + 1):
            begin = time.perf_counter()
            group = [
                next(batches).to(run.process.device, config.train.channels_last)
                for _ in range(config.train.accumulate)
            ]
            between = time.perf_counter()
            step(group, LATE)
            synchronise(run.process.device)
            reading.append(between - begin)
            computing.append(time.perf_counter() - between)

    try:
        peak = peak_memory(steps, run.process.device)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"data.batch_size: {config.data.batch_size} with data.crop {config.data.crop} leaves a batch norm a single "
            "value a channel, of which there is no deviation; take 2 or more images or a larger crop"
        ) from error
    return Steps(min(computing[1:]), min(reading[1:]), peak)


def time_finding(config: Config, steps: Steps, evaluation: float, images: int) -> Finding:
    """How long the whole run will take here.

    Args:
        evaluation: seconds of evaluating one image.
        images: in the validation split.
    """
    workers = min(config.data.workers, available_cores())
    read = 0.0 if config.data.cache == "device" else steps.read
    # Loader processes work beside the step; without them each waits for the other.
    each = max(steps.step, read / workers) if workers else steps.step + read
    total = config.train.steps
    every = config.train.evaluate_every
    evaluations = math.ceil(total / every) if every else 1
    whole = total * each + evaluations * images * evaluation
    what = (
        f"about {duration(whole)}: {total} steps of {each:.2f} s (computing {steps.step:.2f} s, reading {read:.2f} s "
        f"in {workers or 'no'} loader process{'' if workers == 1 else 'es'}), {evaluations} evaluation"
        f"{'' if evaluations == 1 else 's'} of {duration(images * evaluation)}"
    )
    numbers = {
        "seconds": whole,
        "seconds_a_step": each,
        "computing": steps.step,
        "reading": read,
        "evaluation": images * evaluation,
    }
    if config.distill.teacher_cache is not None:
        what += "; the teacher is in it, and its store saves it once it is filled"
    if steps.read > 1.5 * steps.step * max(1, workers) and config.data.cache is None:
        advice = (
            "Reading is the bottleneck: set data.cache, or raise data.workers where there are cores"
        )
        return Finding("note", AREA, what, advice, "data.cache", numbers)
    if whole > LONG:
        advice = "`densekd bench RECIPE` shows where a step spends its time; `--resume` goes on after a stop"
        return Finding("note", AREA, what, advice, "train.steps", numbers)
    return Finding("ok", AREA, what, setting="train.steps", numbers=numbers)


def duration(seconds: float) -> str:
    """``"12 s"``, ``"3 min"``, ``"5.2 h"``, ``"2.1 days"``."""
    for factor, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def memory_finding(peak: int | None, device: torch.device, free: int | None = None) -> Finding:
    """The peak of the steps beside what is left.

    Args:
        free: bytes that are free beside this process now.
    """
    if peak is None:
        return Finding("note", AREA, "how much memory a step takes cannot be told here")
    free = free_memory(device) if free is None else free
    what = f"memory at the peak of a step: {bytes_text(peak)}"
    if free is None:
        return Finding("ok", AREA, what, numbers={"peak_bytes": peak})
    what += f"; {bytes_text(free)} more are free"
    numbers = {"peak_bytes": peak, "free_bytes": free}
    if free < 0.1 * peak:
        advice = "Lower data.batch_size (train.accumulate keeps the effective batch) or data.crop"
        return Finding("warning", AREA, what, advice, "data.batch_size", numbers)
    return Finding("ok", AREA, what, numbers=numbers)


def checkpoint_bytes(run: Run) -> int:
    """What the run folder's checkpoints will take: last.pt twice while it is replaced, student and best weights."""
    weights = sum(x.nbytes for x in run.network.state_dict().values())
    trained = sum(p.nbytes for p in run.network.parameters())
    moments = {"sgd": 1, "adam": 2, "adamw": 2}[run.config.optim.name]
    last = weights + moments * trained + (weights if run.step.ema is not None else 0)
    adversary = run.distiller.adversary
    if adversary is not None:
        last += 3 * sum(p.nbytes for p in adversary.discriminator.parameters())
    return 2 * last + 2 * weights


def disk_findings(run: Run, config: Config, out: Path) -> list[Finding]:
    """Room for checkpoints, the cache of decoded images and the teacher's store.

    Args:
        config: the recipe as it is (a doctor's run has no store).
        out: where run folders are made.
    """
    findings = [_in_cost(disk_finding(out, "the run's folder", checkpoint_bytes(run)))]
    if config.data.cache in ("disk", "device"):
        findings += _data_cache(config, {"train": run.train_set, "val": run.val_set})
    if config.distill.teacher_cache is not None:
        findings += _teacher_store(run, config)
    return findings


def _data_cache(config: Config, readers: Mapping[str, Any]) -> list[Finding]:
    size = sum(Filling(name, reader, None).estimate() for name, reader in readers.items())
    if size > config.data.cache_gb * 1e9:
        what = f"data.cache needs about {bytes_text(size)}, and data.cache_gb allows {config.data.cache_gb:g} GB"
        return [
            Finding(
                "error", AREA, what, "Raise data.cache_gb, or leave data.cache out", "data.cache_gb"
            )
        ]
    return [_in_cost(disk_finding(cache_folder("images"), "the cache of images", size))]


def _teacher_store(run: Run, config: Config) -> list[Finding]:
    settings, epochs = config.distill.teacher_cache, config.data.augment_epochs
    assert settings is not None
    assert epochs is not None  # checked with the settings
    assert isinstance(run.distiller.source, (LiveTeacher, SeveralTeachers))
    adversary = run.distiller.adversary
    plan = make_plan(
        run.distiller.student,
        run.distiller.source,
        run.first_batch().images[:1],
        activation="none" if adversary is None else adversary.discriminator.activation,
        mask=run.distiller.mask,
        storage=settings.storage,
        top_k=settings.top_k,
    )
    images = len(run.train_set) + len(run.unlabelled_set or ())
    size = plan.nbytes * images * epochs
    setting = "distill.teacher_cache"
    if size > settings.disk_gb * 1e9:
        what = (
            f"{setting} needs {bytes_text(size)} ({bytes_text(plan.nbytes)} an image, {images} images, {epochs} "
            f"epochs), and its disk_gb allows {settings.disk_gb:g} GB"
        )
        advice = "Raise disk_gb, take storage int8 or top_k, or fewer data.augment_epochs"
        return [Finding("error", AREA, what, advice, f"{setting}.disk_gb")]
    folder = Path(settings.folder).expanduser() if settings.folder else cache_folder("teacher")
    return [_in_cost(disk_finding(folder, "the teacher's store", size))]


def _in_cost(finding: Finding) -> Finding:
    return replace(finding, area=AREA)
