"""`train` and `distill`: one run of the engine, from settings to a finished run folder."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import nn

from densekd.build import provenance
from densekd.build.run import Run, assemble
from densekd.build.task import best_metric
from densekd.build.trackers import tracker_builders
from densekd.config.load import dump_config, to_tree
from densekd.config.schema import Config
from densekd.distill.teacher import Teacher
from densekd.engine.folder import RunFolder, result_beside
from densekd.engine.launch import StopRequest, started, stop_on_signals
from densekd.engine.log import Log, read_metrics
from densekd.engine.optim import lr_factor
from densekd.engine.trackers import About, Sender, Tracker, numbers
from densekd.engine.trainer import Training, fit
from densekd.errors import DataError, UserError
from densekd.ops.collectives import merge_ranks
from densekd.ops.files import write_text
from densekd.ops.names import teacher_section
from densekd.ops.tiling import Views
from densekd.profiling import count_macs, count_parameters
from densekd.tasks import Task
from densekd.types import Batch
from densekd.workflows.baseline import guess_scores
from densekd.workflows.cache import cached_readers
from densekd.workflows.doctor.machine import setting_findings
from densekd.workflows.forms import settled
from densekd.workflows.resume import changed_settings, more_steps
from densekd.workflows.tune import tuned
from densekd.workflows.verdict import NOTHING, gained


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: 0, or 128 + the signal that stopped it.
        step: optimizer steps done.
        scores: of the validation split at the last evaluation; None before the first.
    """

    status: int
    step: int
    scores: dict[str, Any] | None

    @property
    def stopped_by(self) -> str | None:
        """The name of the signal that stopped the run, as ``"SIGTERM"``, else None."""
        return Signals(self.status - 128).name if self.status else None


def run(
    config: Config,
    *,
    distil: bool,
    folder: Path,
    command: str,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> int:
    """`carry_out`, for callers who want the exit status alone."""
    outcome = carry_out(
        config,
        distil=distil,
        folder=folder,
        command=command,
        resume=resume,
        device=device,
        quiet=quiet,
    )
    return outcome.status


def carry_out(
    config: Config,
    *,
    distil: bool,
    folder: Path,
    command: str,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    networks: Mapping[str, nn.Module] | None = None,
) -> Outcome:
    """Train `config.model`, with the teacher's terms when `distil`.

    Everything a user can get wrong fails before the folder is made.

    Args:
        quiet: say only what came out.
        networks: ``"model"`` and ``"teacher"``, where they are objects that the recipe cannot build.
    """
    config = settled(config, distil)
    with ExitStack() as stack:
        process = stack.enter_context(started(device, deterministic=config.train.deterministic))
        stop = stack.enter_context(stop_on_signals())
        run_folder = RunFolder(folder)
        main = process.rank == 0
        said: list[str] = []
        if config.train.auto:
            config, said = tuned(
                config, run_folder if resume else None, process, distil=distil, networks=networks
            )
        changed = changed_settings(run_folder, config) if resume else []
        run_folder.check(resume=resume, changed=changed)
        fewer = more_steps(run_folder, config) if resume else None
        if resume and fewer is None and run_folder.result.exists():
            if main:
                print(f"{folder} has finished: scores {run_folder.result}")
            return finished_before(run_folder)
        marks = object_marks(networks or {})  # before anything is changed in them
        run = assemble(config, process, distil=distil, networks=networks)
        run = replace(run, remarks=[*said, *run.remarks])
        training = run.training(run_folder)
        training.identity.update(marks)
        # An evaluation that cannot work fails now, not after all steps.
        run.score(training.result, training.skipped, limit=1)
        if config.data.cache is not None:
            sets = cached_readers(config, run.train_set, run.val_set, process, stop)
            run = run.with_sets(*sets)
            if stop:
                if main:
                    print("stopped before the first step; the same command goes on")
                return Outcome(stop.exit_status, 0, None)
        threads_before = run_folder.last_threads()
        trackers = tracker_builders(config.train) if main else {}
        if main:
            stack.enter_context(run_folder.open(dump_config(config), command, resume=resume))
            if fewer is not None:
                write_text(run_folder.config, dump_config(config))
        resumed = resume and training.resume()
        log = open_log(run, training, trackers, quiet=quiet)
        stack.callback(log.close)
        if resume:
            say_resumed(log, training, resumed=resumed, threads_before=threads_before)
        if fewer is not None:
            log.say(
                f"train.steps was {fewer} and is {config.train.steps}: from here on the learning rate follows the "
                f"schedule of {config.train.steps} steps, so this is not the run that had as many from its start"
            )
        introduce(log, run)
        loader = run.train_loader(training.done, training.skipped)
        try:
            finished = take_steps(run, training, loader, log, stop)
        except DataError as error:
            error.one_rank = True  # each rank reads files of its own
            raise
        conclude(log, run, training, finished=finished)
        return Outcome(0 if finished else stop.exit_status, training.done, training.scores)


def finished_before(folder: RunFolder) -> Outcome:
    """The outcome of a run that has nothing left to do."""
    try:
        result = json.loads(folder.result.read_text(encoding="utf-8"))
        step, scores = result["step"], result["scores"]
        if not isinstance(step, int) or not isinstance(scores, dict):
            raise TypeError("it holds no scores")
        return Outcome(0, step, scores)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder.result} is damaged ({type(error).__name__}: {error}); delete it, and the same command writes it "
            "again from the last checkpoint"
        ) from error


def object_marks(networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """What must be the same of networks that were given as objects, when the run goes on."""
    marks = {}
    if "model" in networks:
        shapes = {k: tuple(v.shape) for k, v in networks["model"].state_dict().items()}
        marks["shapes of the student"] = hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
    if "teacher" in networks:
        marks["weights of the teacher"] = provenance.state_digest(networks["teacher"])
    return marks


def open_log(
    run: Run,
    training: Training,
    trackers: Mapping[str, Callable[[About], Tracker]],
    *,
    quiet: bool = False,
) -> Log:
    folder, settings = training.folder, run.config.train
    about = About(shown_name(folder.path), folder.path, to_tree(run.config), training.done, None)
    history = read_metrics(folder.metrics) if trackers else []
    return Log(
        folder.metrics,
        active=run.process.rank == 0,
        total=settings.steps,
        start=training.done,
        title=folder.path.name,
        device=run.process.device,
        trackers=[Sender(name, make, about, history) for name, make in trackers.items()],
        quiet=quiet,
    )


def shown_name(folder: Path) -> str:
    """A run's name for people; of an ablation's part its variant too (``pi_pa/seed0``)."""
    path = folder.resolve()
    return f"{path.parent.name}/{path.name}" if re.fullmatch(r"seed\d+", path.name) else path.name


def say_resumed(log: Log, training: Training, *, resumed: bool, threads_before: int | None) -> None:
    """Where the run goes on, and whether its numbers will be exactly those of an uninterrupted one."""
    if not resumed:
        log.say("no checkpoint yet: starting from the beginning")
        return
    for remark in training.remarks:
        log.say(remark)
    log.say(f"resumed at step {training.done}")
    threads = torch.get_num_threads()
    if training.process.device.type == "cpu" and threads_before not in (None, threads):
        # Another machine, or other processes on it, leave another number of cores.
        log.say(
            f"{threads} threads for compute and {threads_before} before: results agree up to rounding only; "
            f"OMP_NUM_THREADS={threads_before} makes them exact"
        )


def introduce(log: Log, run: Run) -> None:
    """What will be trained, on what, and what looks odd about it."""
    for line in opening_lines(run):
        log.say(line)
    if log.active:
        for finding in setting_findings(run.config, run.process.device):
            log.say(f"{finding.level}: {finding}")
    for remark in run.remarks:
        log.say(remark)
    data, accumulate, process = run.config.data, run.config.train.accumulate, run.process
    images, size, shown = f"{len(run.train_set)} training", data.batch_size, str(data.batch_size)
    if data.unlabelled is not None:
        images += f", {len(run.unlabelled_set or ())} unlabelled"
        size += data.unlabelled.batch_size
        shown = f"({data.batch_size} labelled + {data.unlabelled.batch_size} unlabelled)"
    log.say(
        f"{images} and {len(run.val_set or ())} validation images; effective batch "
        f"{size * accumulate * process.world_size} "
        f"({shown} x {accumulate} accumulated x {process.world_size} processes); "
        f"{count_parameters(run.network) / 1e6:.3f} M parameters; {process.device}; "
        f"threads: {torch.get_num_threads()}"
    )


def opening_lines(run: Run) -> list[str]:
    """What is trained, by whom and what it is taught, how long."""
    config, teachers = run.config, run.config.every_teacher.values()
    steps = f"{config.train.steps} steps on {config.data.dataset}"
    if not teachers:
        return [f"train {config.model.name} for {steps}"]
    terms = [f"{name} x {weight_text(term.weight)}" for name, term in config.distill.terms.items()]
    if config.distill.holistic is not None:
        terms.append(f"holistic x {config.distill.holistic.weight:g}")
    boxes = config.distill.pseudo_boxes
    if boxes is not None:
        terms.append(f"boxes of score {boxes.score:g} and more as labels x {boxes.weight:g}")
    files = [(t.name, t.weights or t.options.get("path")) for t in teachers]
    whose = " and ".join(f"{name}{teacher_text(file)}" for name, file in files)
    return [
        f"distil {config.model.name} from {whose} for {steps}",
        f"terms: the task's own, {', '.join(terms)}",
        *(f"aligned: {line}" for line in run.alignment),
    ]


def weight_text(weight: object) -> str:
    return f"{weight:g}" if isinstance(weight, (int, float)) else str(weight)


def teacher_text(weights: str | None) -> str:
    """Where the teacher's weights or its program are, and what their run scored, where it is there to say."""
    if weights is None:
        return ""
    result = result_beside(Path(weights))
    scores = {k: v for k, v in (result.get("scores") or {}).items() if isinstance(v, float)}
    shown = "".join(
        f", {name} {value:.4f} on {result.get('split')}" for name, value in list(scores.items())[:1]
    )
    return f" ({weights}{shown})"


def take_steps(
    run: Run, training: Training, loader: Iterable[Batch], log: Log, stop: StopRequest
) -> bool:
    """All steps that are left; False where `stop` ended them before."""
    config, task = run.config, run.task
    for name, teacher in run.distiller.teachers.items() if training.done == 0 else ():
        if has_score(teacher, task):
            say_teacher_knows(log, run, teacher, name)
    best = best_metric(config, task)
    return fit(
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
        evaluate=partial(run.score, skipped=training.skipped),
        best=best,
        smaller_is_better=best in task.smaller_is_better,
        accumulate=config.train.accumulate,
        channels_last=config.train.channels_last,
        log_every=config.train.log_every,
        save_every=config.train.save_every,
        evaluate_every=config.train.evaluate_every,
    )


def say_teacher_knows(log: Log, run: Run, teacher: Teacher, name: str = "") -> None:
    """The teacher's score on this run's first batch beside that of a constant guess; every rank must call it."""
    task, batch = run.task, run.first_batch()
    quick = task.quick_metric
    known = teacher_knows(teacher, task, batch)
    whose = f"teacher {name}'s" if name else "teacher's"
    if math.isnan(known):
        log.say(f"the first batch has no label, so the {whose} {quick} on it was not measured")
        return
    line = f"{whose} {quick} on a first batch, cut as the student sees it: {known:.3f}"
    try:
        scores = guess_scores(
            task, run.train_set, [batch], samples=8, device=batch.images.device, skip_bad=True
        )
        guess = scores[quick]
    except DataError:  # no label to guess from
        guess = None
    if guess is None or not math.isfinite(known):
        log.say(line)
        return
    log.say(f"{line} (a constant guess: {guess:.3f})")
    if gained(known, guess, smaller_is_better=quick in task.smaller_is_better) < NOTHING:
        section = teacher_section(name)
        log.say(
            "warning: on this batch the teacher is no better than an answer that looks at no image. Look at "
            f"{section}.weights, {section}.input.mean, std, order and range, and {section}.classes; "
            "`densekd doctor RECIPE` looks closer"
        )


def has_score(teacher: Teacher, task: Task) -> bool:
    """Whether a teacher's answers are of the kind that the task scores.

    Relative inverse depth is not, nor are boxes of other classes, of which the features alone are compared.
    """
    if getattr(teacher.network.model, "gives_depth", None) == "inverse":
        return False
    own = getattr(teacher.network.model, "num_classes", None)
    same = teacher.network.label_space is not None or own == len(task.classes)
    return same or own is None or not task.classes


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


def conclude(log: Log, run: Run, training: Training, *, finished: bool) -> None:
    """Write result.json where the run has finished, and say what came out or how to go on."""
    skipped = merge_ranks(training.skipped)
    if skipped:
        log.say(f"skipped {len(skipped)} unreadable files: {', '.join(skipped)}")
    if run.process.rank != 0:
        return
    if finished:
        write_result(run, training, skipped, log)
        training.folder.previous.unlink(missing_ok=True)  # there is nothing to go on with
        log.conclude(closing_line(run, training))
        log.conclude(next_line(run, training))
    else:
        log.conclude(f"stopped at step {training.done}; go on with the same command and --resume")


def write_result(run: Run, training: Training, skipped: dict[str, str], log: Log) -> None:
    config = run.config
    try:
        macs = count_macs(run.network, config.model.in_channels, run.size)
    except Exception as error:  # no by-product is worth the result of a run
        macs = None
        log.say(f"the MACs could not be counted ({type(error).__name__}: {error})")
    result = {
        "step": training.done,
        "split": config.data.val_split,
        "scores": training.scores,
        f"best_{best_metric(config, run.task)}": training.best,
        "parameters": count_parameters(run.network),
        "macs": macs,
        "macs_size": list(run.size),
        "seed": config.seed,
        "note": config.note,
        "seconds": round(training.seconds, 1),
        "skipped": skipped,
        "config": to_tree(config),
    }
    told = ("parameters", "macs", "seconds", f"best_{best_metric(config, run.task)}")
    log.final = numbers({**(training.scores or {}), **{key: result[key] for key in told}}, "final/")
    write_text(training.folder.result, json.dumps(result, indent=2) + "\n")


def next_line(run: Run, training: Training) -> str:
    """What can be done with a finished run."""
    folder = training.folder.path
    return (
        f"next: densekd predict {folder} IMAGE --out ANSWERS; densekd export {folder} --out student.onnx; "
        f"densekd report {folder}"
    )


def closing_line(run: Run, training: Training) -> str:
    assert training.scores is not None
    config, folder = run.config, training.folder
    note = f" ({config.note})" if config.note else ""
    score = run.task.summary(training.scores)[-1].strip()
    return (
        f"{config.data.val_split} {score}{note}; weights {folder.student}, scores {folder.result}"
    )
