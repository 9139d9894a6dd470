"""`train` and `distill`: one run of the engine, from settings to a finished run folder."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from densekd.build import provenance
from densekd.build.data import (
    build_augment,
    build_device_loader,
    build_eval_loader,
    build_reader,
    build_train_loader,
    build_views,
    check_reader,
    compare_readers,
    input_size,
)
from densekd.build.distiller import build_distiller
from densekd.build.dry_run import dry_run
from densekd.build.step import build_step
from densekd.build.task import best_metric, build_task, check_extras
from densekd.build.teachers import open_teacher_cache
from densekd.config.load import dump_config, to_tree
from densekd.config.schema import Config, Distill
from densekd.data.augment import Augment
from densekd.distill.teacher import Teacher
from densekd.engine.evaluate import evaluate
from densekd.engine.folder import RunFolder
from densekd.engine.launch import Process, started, stop_on_signals
from densekd.engine.log import Log
from densekd.engine.optim import lr_factor
from densekd.engine.step import AMP, bare
from densekd.engine.trainer import Training, fit
from densekd.errors import DataError
from densekd.models.taps import Taps
from densekd.ops.collectives import merge_ranks
from densekd.ops.files import write_text
from densekd.ops.tiling import Views
from densekd.profiling import count_macs, count_parameters
from densekd.tasks import Task
from densekd.types import Batch
from densekd.workflows.cache import cached_readers

# May differ between a run and its continuation: they change where files are and what is written, not what is learned.
FREE_ON_RESUME = {
    "data.root", "data.workers", "data.cache_gb", "data.on_bad_file", "train.log_every", "train.save_every",
    "train.evaluate_every", "train.tensorboard", "evaluate.batch_size", "note",
    "distill.teacher_cache.folder", "distill.teacher_cache.disk_gb",
}  # fmt: skip


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def changed_settings(folder: RunFolder, config: Config) -> list[str]:
    """Settings in which `config` differs from the one the folder was started with, as ``key: old -> new``."""
    if not folder.config.exists():
        return []
    old = flatten(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    new = flatten(yaml.safe_load(dump_config(config)))
    # From the host's cache samples come as from their files; the device's are equal up to rounding only.
    for settings in (old, new):
        settings["data.cache"] = "device" if settings.get("data.cache") == "device" else None
    keys = [k for k in {**old, **new} if k not in FREE_ON_RESUME and old.get(k) != new.get(k)]
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in keys]


def run(
    config: Config,
    *,
    distil: bool,
    folder: Path,
    command: str,
    resume: bool = False,
    device: str = "auto",
) -> int:
    """Train `config.model` (with the teacher's terms when `distil`); returns the exit status.

    Everything a user can get wrong fails before the folder is made.
    """
    if not distil:
        # So that the run's settings say what it did, and a distillation cannot be resumed as a training or back.
        config = replace(config, teacher=None, distill=Distill())
    else:
        config = replace(config, note=config.note or provenance.teacher_note(config.teacher))
    with ExitStack() as stack:
        process = stack.enter_context(started(device, deterministic=config.train.deterministic))
        stop = stack.enter_context(stop_on_signals())
        run_folder = RunFolder(folder)
        main = process.rank == 0
        changed = changed_settings(run_folder, config) if resume else []
        run_folder.check(resume=resume, changed=changed)
        if resume and run_folder.result.exists():
            if main:
                print(f"{folder} has finished: scores {run_folder.result}")
            return 0
        train_reader = build_reader(config.data, config.data.train_split, training=True)
        val_reader = build_reader(config.data, config.data.val_split, training=False)
        remarks = [
            f"{split}: {remark}"
            for split, reader in (
                (config.data.train_split, train_reader),
                (config.data.val_split, val_reader),
            )
            for remark in check_reader(reader, config)
        ]
        task = build_task(config, train_reader)
        if config.optim.warmup_steps >= config.train.steps:
            remarks.append(
                f"optim.warmup_steps {config.optim.warmup_steps} is no less than train.steps {config.train.steps}: "
                "the learning rate never reaches optim.lr"
            )
        remarks += compare_readers(config.data, train_reader, val_reader)
        best = best_metric(config, task)
        torch.manual_seed(config.seed)  # initial weights; every step seeds itself
        distiller, spec = build_distiller(config, task, distil=distil, device=process.device)
        size = input_size(config, train_reader)
        augment = build_augment(config.data, train_reader, spec)
        # The same few images on every rank, so that all of them stop or none does.
        few = replace(config, data=replace(config.data, batch_size=min(2, config.data.batch_size)))
        alone = Process(rank=0, world_size=1, device=process.device)
        batch = first_batch(few, train_reader, augment, alone)
        remarks += dry_run(distiller, batch)
        if config.distill.teacher_cache is not None:
            stored = open_teacher_cache(config, distiller, train_reader, augment, batch)
            distiller = distiller.with_source(stored)
            remarks.append(str(stored))
        check_extras(config)

        step = build_step(config, distiller, process)
        network = bare(distiller.student).model
        metadata = provenance.weights_metadata(config, task, spec)
        training = Training(
            step, run_folder, process, metadata=metadata, identity=provenance.identity(config)
        )
        score = partial(_score, config, val_reader, task, spec, process, training.skipped)
        # An evaluation that cannot work fails now, not after all steps.
        score(training.result, limit=1)
        if config.data.cache is not None:
            train_reader, val_reader = cached_readers(
                config, train_reader, val_reader, process, stop
            )
            if stop:
                if main:
                    print("stopped before the first step; the same command goes on")
                return stop.exit_status
            score = partial(_score, config, val_reader, task, spec, process, training.skipped)
        threads, before = torch.get_num_threads(), run_folder.last_threads()
        if main:
            stack.enter_context(run_folder.open(dump_config(config), command, resume=resume))
        resumed = resume and training.resume()

        log = Log(
            run_folder.metrics,
            active=main,
            total=config.train.steps,
            start=training.done,
            title=run_folder.path.name,
            device=process.device,
            tensorboard=run_folder.path / "tensorboard" if config.train.tensorboard else None,
        )
        stack.callback(log.close)
        if resume:
            log.say(
                f"resumed at step {training.done}"
                if resumed
                else "no checkpoint yet: starting from the beginning"
            )
            if resumed and process.device.type == "cpu" and before not in (None, threads):
                # Another machine, or other processes on it, leave another number of cores.
                log.say(
                    f"{threads} threads for compute and {before} before: results agree up to rounding only; "
                    f"OMP_NUM_THREADS={before} makes them exact"
                )
        for remark in remarks:
            log.say(remark)
        effective = config.data.batch_size * config.train.accumulate * process.world_size
        log.say(
            f"{len(train_reader)} training and {len(val_reader)} validation images; effective batch {effective} "
            f"({config.data.batch_size} x {config.train.accumulate} accumulated x {process.world_size} processes); "
            f"{count_parameters(network) / 1e6:.3f} M parameters; {process.device}; "
            f"threads: {threads}"
        )
        make_loader = build_device_loader if config.data.cache == "device" else build_train_loader
        loader = make_loader(config, train_reader, augment, process, training.done)
        loader.skipped = training.skipped  # one record, over all starts of the run
        try:
            if distiller.teacher is not None and training.done == 0:
                batch = first_batch(config, train_reader, augment, process)
                score_now = teacher_knows(distiller.teacher, task, batch)
                log.say(
                    f"teacher's {task.quick_metric} on a first batch, cut as the student sees it: {score_now:.3f}"
                )
            finished = fit(
                training,
                loader,
                log,
                stop,
                steps=config.train.steps,
                seed=config.seed,
                lr_factor=partial(
                    lr_factor,
                    total=config.train.steps,
                    schedule=config.optim.schedule,
                    power=config.optim.power,
                    warmup=config.optim.warmup_steps,
                ),
                evaluate=score,
                best=best,
                smaller_is_better=best in task.smaller_is_better,
                accumulate=config.train.accumulate,
                channels_last=config.train.channels_last,
                log_every=config.train.log_every,
                save_every=config.train.save_every,
                evaluate_every=config.train.evaluate_every,
            )
        except DataError as error:
            error.one_rank = True  # each rank reads files of its own
            raise
        skipped = merge_ranks(training.skipped)
        if skipped:
            log.say(f"skipped {len(skipped)} unreadable files: {', '.join(skipped)}")
        if main and finished:
            extra = {"seconds": round(training.seconds, 1), "skipped": skipped}
            _write_result(config, training, best, network, size, extra)
            log.say(_closing_line(config, training, task))
        elif main:
            log.say(f"stopped at step {training.done}; go on with the same command and --resume")
        return 0 if finished else stop.exit_status


def first_batch(config: Config, reader: Any, augment: Augment, process: Process) -> Batch:
    data = replace(config.data, workers=0)
    loader = build_train_loader(replace(config, data=data), reader, augment, process, 0)
    batch = next(iter(loader)).to(process.device)
    if isinstance(batch.targets, list):
        # A small set's image may come twice, cut differently: to a detector's score it is another image.
        first = process.rank * len(batch)
        batch.targets = [replace(t, image_id=first + i) for i, t in enumerate(batch.targets)]
    return batch


@torch.no_grad()
def teacher_knows(teacher: Teacher, task: Task, batch: Batch) -> float:
    """How much the teacher knows of the crops it is asked about; NaN without labels.

    A teacher that was trained on whole images can be poor on small crops of them, and weights of another input
    range load without complaint: either shows here and nowhere else.
    """
    metric = task.metric(batch.images.device)
    metric.update(task.predict(teacher, batch, Views()), batch)
    value = metric.compute()[task.quick_metric]
    return float("nan") if value is None else value


def _score(
    config: Config,
    reader: Any,
    task: Any,
    spec: Any,
    process: Process,
    skipped: dict[str, str],
    network: nn.Module,
    limit: int | None = None,
) -> dict[str, Any]:
    loader = build_eval_loader(config, reader, spec, process, limit=limit)
    scores = evaluate(
        Taps(network, {}, spec),
        loader,
        task,
        device=process.device,
        views=build_views(config.evaluate),
        amp=AMP[config.train.amp],
    )
    skipped.update(loader.skipped)
    return scores


def _write_result(
    config: Config,
    training: Training,
    best: str,
    network: nn.Module,
    size: tuple[int, int],
    extra: dict[str, Any],
) -> None:
    result = {
        "step": training.done,
        "split": config.data.val_split,
        "scores": training.scores,
        f"best_{best}": training.best,
        "parameters": count_parameters(network),
        "macs": count_macs(network, config.model.in_channels, (size[0], size[1])),
        "macs_size": list(size),
        "seed": config.seed,
        "note": config.note,
        **extra,
        "config": to_tree(config),
    }
    write_text(training.folder.result, json.dumps(result, indent=2) + "\n")


def _closing_line(config: Config, training: Training, task: Task) -> str:
    assert training.scores is not None
    folder = training.folder
    note = f" ({config.note})" if config.note else ""
    score = task.summary(training.scores)[-1].strip()
    return (
        f"{config.data.val_split} {score}{note}; weights {folder.student}, scores {folder.result}"
    )
