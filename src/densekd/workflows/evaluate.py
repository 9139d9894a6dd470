"""`evaluate`: score a weights file on a split."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import track
from torch import nn

from densekd.build import provenance
from densekd.build.data import VIEWS, build_eval_loader, build_reader, build_views, check_reader
from densekd.build.networks import build_network
from densekd.build.settings import naming_settings
from densekd.build.task import build_task
from densekd.config.schema import Config
from densekd.engine.evaluate import evaluate
from densekd.engine.launch import started
from densekd.engine.step import AMP
from densekd.errors import DataError, UserError
from densekd.models.taps import Taps, evaluating
from densekd.ops.collectives import merge_ranks
from densekd.ops.files import write_text
from densekd.tasks import Task
from densekd.types import InputSpec


def check_output(path: Path) -> None:
    """Refuse to replace a file that `evaluate` did not write; said before any work."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_score_file = (
            isinstance(content, dict) and {"weights", "split", "images"} <= content.keys()
        )
    except (ValueError, OSError):
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
) -> dict[str, Any]:
    """Score `config.model` with `weights` on `split`.

    Args:
        report: called once with the task and what is returned, by rank 0 alone.
        results: file for the detections in COCO's result form (detection only).

    Returns:
        the task's scores, e.g. ``{"miou", "pixel_accuracy", "iou": {class: ...}}``, with what was scored.
    """
    if weights is None and config.model.weights is None:
        raise UserError("evaluate needs weights: give --weights FILE (.safetensors or .pth)")
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
) -> dict[str, Any]:
    """Score the network that `built` gives for the data's task, as `evaluate_weights` does.

    Args:
        name: of what is scored, for the result.
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
        tapped = Taps(network, {}, spec).to(process.device)
        loader = build_eval_loader(config, reader, spec, process)
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
        result = {
            **scores,
            # The task's own count where it has one: an image without any known depth is read and not scored.
            "images": scores.get("images", len(reader) - len(skipped)),
            "skipped": skipped,
            "split": split,
            "weights": name,
            "note": config.note or provenance.about_weights(name).get("note", "")
            if note is None
            else note,
        }
        if results is not None and detections is not None:
            found = detections()  # joins all ranks
            if process.rank == 0:
                write_text(results, json.dumps(found) + "\n")
        if report is not None and process.rank == 0:
            report(task, result)
    return result


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
    return "\n".join(lines)
