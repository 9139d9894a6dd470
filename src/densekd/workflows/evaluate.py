"""`evaluate`: score a weights file on a split."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn

from densekd.build import provenance
from densekd.build.data import VIEWS, build_eval_loader, build_reader, build_views, check_reader
from densekd.build.networks import build_network, check_origin
from densekd.build.settings import naming_settings
from densekd.build.task import build_task
from densekd.build.teachers import (
    build_label_space,
    build_teacher,
    checked_scale,
    label_space_remarks,
)
from densekd.config.schema import Config, Teacher
from densekd.engine.evaluate import evaluate
from densekd.engine.launch import started
from densekd.engine.step import AMP
from densekd.errors import DataError, UserError
from densekd.export import EXPORTED, Program, open_exported
from densekd.models.label_space import LabelSpace
from densekd.models.taps import Taps, evaluating
from densekd.ops.collectives import merge_ranks
from densekd.ops.files import read_object, write_text
from densekd.ops.names import did_you_mean, teacher_section
from densekd.tasks import Task
from densekd.types import InputSpec


def check_output(path: Path) -> None:
    """Refuse to replace a file that `evaluate` did not write; said before any work."""
    if not path.exists():
        return
    try:
        is_score_file = {"weights", "split", "images"} <= read_object(path).keys()
    except UserError:
        is_score_file = False
    if not is_score_file:
        raise UserError(f"--output {path} exists and is no score file; give another path")


def evaluate_weights(
    config: Config,
    weights: Path | None,
    split: str,
    *,
    device: str = "auto",
    quiet: bool = False,
    report: Callable[[Task, dict[str, Any]], None] | None = None,
    results: Path | None = None,
    trusted: bool = False,
) -> dict[str, Any]:
    """Score `config.model` with `weights` on `split`; an exported file is scored in its own runtime.

    Args:
        report: called once with the task and what is returned, by rank 0 alone.
        results: file for the detections in COCO's result form (detection only).
        trusted: let a torch.export file hold code of its own.

    Returns:
        the task's scores, e.g. ``{"miou", "pixel_accuracy", "iou": {class: ...}}``, with what was scored.
    """
    if weights is None and config.model.weights is None:
        raise UserError("evaluate needs weights: give --weights FILE (.safetensors or .pth)")
    file = Path(weights or str(config.model.weights))
    if file.suffix in EXPORTED:
        return evaluate_network(
            alone(config),
            lambda task: exported_network(file, task, trusted=trusted),
            split,
            name=str(file),
            note=config.note,
            device=device,
            quiet=quiet,
            report=report,
            results=results,
        )
    model = config.model if weights is None else replace(config.model, weights=str(weights))
    return evaluate_network(
        replace(config, model=model),
        lambda task: build_network(model, task, "model"),
        split,
        name=str(model.weights),
        device=device,
        quiet=quiet,
        report=report,
        results=results,
    )


def evaluate_teacher(
    config: Config,
    split: str,
    *,
    name: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    report: Callable[[Task, dict[str, Any]], None] | None = None,
    results: Path | None = None,
) -> dict[str, Any]:
    """Score a teacher of the recipe as its student hears it: its classes put together to the student's.

    Args:
        name: which of several teachers.
        report, results: as in `evaluate_weights`.
    """
    where, section = _section_of_teacher(config, name)
    note = config.note or provenance.teacher_note(section)

    def built(task: Task) -> tuple[nn.Module, InputSpec]:
        space = build_label_space(section, task, where)
        network, spec = build_teacher(section, task, torch.device("cpu"), space, where)
        if getattr(network, "gives_depth", None) == "inverse":
            raise UserError(
                f"--teacher: {section.name} gives relative inverse depth, which has no score in metres"
            )
        return network, spec

    return evaluate_network(
        config,
        built,
        split,
        name=str(section.weights or section.name),
        note=note,
        device=device,
        quiet=quiet,
        report=report,
        results=results,
        label_space=lambda task: build_label_space(section, task, where),
        scale=lambda task: checked_scale(section, task, where),
        role=where,
    )


def _section_of_teacher(config: Config, name: str | None) -> tuple[str, Teacher]:
    sections = config.every_teacher
    if not sections:
        raise UserError("--teacher: the recipe has none; it needs a section teacher with weights")
    names = [where.removeprefix("teachers.") for where in sections]
    if config.teachers and name is None:
        raise UserError(f"--teacher-name: missing; the recipe has the teachers {', '.join(names)}")
    if name is None:
        return next(iter(sections.items()))
    if not config.teachers:
        raise UserError("--teacher-name: the recipe has one teacher; --teacher alone scores it")
    if name not in names:
        raise UserError(f"--teacher-name: {name!r} is unknown; {did_you_mean(name, names)}")
    where = teacher_section(name)
    return where, sections[where]


def alone(config: Config) -> Config:
    """One image a batch: no padding comes between an exported file and its image."""
    return replace(config, evaluate=replace(config.evaluate, batch_size=1))


def exported_network(
    file: Path, task: Task, *, trusted: bool = False
) -> tuple[nn.Module, InputSpec]:
    """An exported file in a network's place, where it is of this task and these classes."""
    found = open_exported(file, trusted=trusted)
    check_origin(found.model, task, str(file))
    program = Program(found)
    return program, program.input_spec


def evaluate_network(
    config: Config,
    built: Callable[[Task], tuple[nn.Module, InputSpec]],
    split: str,
    *,
    name: str,
    note: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    report: Callable[[Task, dict[str, Any]], None] | None = None,
    results: Path | None = None,
    label_space: Callable[[Task], LabelSpace | None] = lambda task: None,
    scale: Callable[[Task], float] = lambda task: 1.0,
    role: str = "model",
    limit: int | None = None,
) -> dict[str, Any]:
    """Score the network that `built` gives for the data's task, as `evaluate_weights` does.

    Args:
        label_space: how the network's classes become the task's.
        scale: by how much the images are enlarged for the network.
        role: the section of the network, for messages.
        name: of what is scored, for the result.
        limit: score the first so many images only.
        note: stands beside the score; None takes the recipe's or that of the weights file `name`.
    """
    with started(device) as process:
        reader = build_reader(config.data, split, training=False)
        check_reader(reader, config, split)
        task = build_task(config, reader)
        network, spec = built(task)
        metric = task.metric(process.device)
        detections = getattr(metric, "results", None)
        if results is not None and detections is None:
            raise UserError(f"--results: {task.name} has no results file; leave it out")
        space = label_space(task)
        tapped = Taps(network, {}, spec, label_space=space, scale=scale(task)).to(process.device)
        loader = build_eval_loader(config, reader, spec, process, limit=limit)
        shown = (
            loader
            if quiet or process.rank != 0
            else track(loader, description=f"evaluate {split}", total=len(loader), transient=True)
        )
        try:
            with naming_settings(VIEWS), evaluating(network):  # every module's own mode afterwards
                scores = evaluate(
                    tapped,
                    shown,
                    task,
                    device=process.device,
                    views=build_views(config.evaluate),
                    amp=AMP[config.train.amp],
                    metric=metric,
                )
        except DataError as error:
            error.one_rank = True  # each rank reads files of its own
            raise
        skipped = merge_ranks(loader.skipped)
        remarks = _left_over(tapped, reader, role, process.device)
        result = {
            **scores,
            # The task's own count where it has one: an image without any known depth is read and not scored.
            "images": scores.get("images", min(limit or len(reader), len(reader)) - len(skipped)),
            "skipped": skipped,
            "split": split,
            "weights": name,
            "note": config.note or provenance.about_weights(name).get("note", "")
            if note is None
            else note,
            **({"remarks": remarks} if remarks else {}),
        }
        if results is not None and detections is not None:
            found = detections()  # joins all ranks
            if process.rank == 0:
                write_text(results, json.dumps(found) + "\n")
        if report is not None and process.rank == 0:
            report(task, result)
    return result


def _left_over(tapped: Taps, reader: Any, role: str, device: torch.device) -> list[str]:
    """What a network whose classes are put together says of none of the new ones, on the split's first image."""
    if tapped.label_space is None:
        return []
    image = torch.from_numpy(reader.read(0).image).permute(2, 0, 1)[None].to(device).float() / 255
    with evaluating(tapped):
        return label_space_remarks(tapped, image, role)


def write_scores(scores: dict[str, Any], output: Path) -> None:
    write_text(output, json.dumps(scores, indent=2) + "\n")


def scores_text(task: Task, scores: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = task.summary(scores)
    note = f"  ({scores['note']})" if scores["note"] else ""
    lines[-1] += f"  on {scores['images']} images of {scores['split']}{note}"
    if scores["skipped"]:
        lines.append(
            f"skipped {len(scores['skipped'])} unreadable files: {', '.join(scores['skipped'])}"
        )
    lines += scores.get("remarks", [])
    return "\n".join(lines)
