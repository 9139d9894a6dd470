"""`compare`: the answers of several networks for the same images side by side, as a picture or a moving one."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from densekd.build.data import build_views
from densekd.config.schema import Config
from densekd.data.base import Sample
from densekd.data.collate import Item, collate
from densekd.data.loader import with_target
from densekd.errors import UserError
from densekd.models.taps import evaluating
from densekd.ops.files import replacing
from densekd.ops.tiling import Views
from densekd.profiling.measure import interleave, timed
from densekd.report.answers import as_rgb, overlay
from densekd.report.moving import MOVING, save_moving
from densekd.report.pictures import grid
from densekd.types import Batch
from densekd.workflows.compare_inputs import Frame, Truth, frames_of
from densekd.workflows.compare_text import score_text
from densekd.workflows.load import LoadedModel, as_arrays

STILL = ".png"
ROWS = 8  # frames of a still picture
TIMED = 10  # calls of each network on the first frame, for its time


def check_out(out: Path) -> None:
    if out.suffix not in (*MOVING, STILL):
        raise UserError(
            f"--out {out}: expected a name that ends with {', '.join((*MOVING, STILL))}"
        )
    if out.exists():
        raise UserError(f"--out {out} exists; give another name")


def compare(
    models: Sequence[LoadedModel],
    names: Sequence[str],
    inputs: Sequence[str],
    out: Path,
    *,
    truth: Truth,
    recipe: Config | None = None,
    frames: int | None = None,
    width: int = 320,
    rate: float = 2.0,
    quality: int = 70,
) -> dict[str, Any]:
    """Write the picture; returns each network's time and score.

    Args:
        models: of one task and equal classes.
        names: one a model.
        inputs: images, folders and patterns, or one video; empty for the images of `truth.reader`.
        recipe: how images are seen where they are scored (its `evaluate` section).
        frames: at most so many; None takes all for a moving picture and `ROWS` for a still one.
        width: of one picture, in pixels.
        rate: frames a second.

    Raises:
        UserError: models of different tasks or classes, or no image.
    """
    check_out(out)
    check_models(models, truth)
    views = build_views(recipe.evaluate) if recipe is not None else Views()
    count = frames if frames is not None or out.suffix != STILL else ROWS
    stream = frames_of(inputs, out, truth, models[0].input_spec.channels, count)
    first = next(stream, None)
    if first is None:
        raise UserError("there is no image to compare the models on")
    milliseconds = time_of(models, first, views)
    scene = Scene(models, names, milliseconds, views, width, truth)
    stream = itertools.chain([first], stream)
    if out.suffix == STILL:
        pictures = [scene.row(frame) for frame in stream]
        with replacing(out) as neighbour:
            scene.still(pictures).save(neighbour, format="PNG", optimize=True)
        written = len(pictures)
    else:
        written = save_moving(out, map(scene.moving, stream), rate=rate, quality=quality)
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "frames": written,
        "frames_with_truth": scene.known,
        "models": [
            {
                "name": name,
                "path": str(model.path),
                "milliseconds": round(ms, 3),
                "scores": metric.compute() if scene.known else None,
                "note": model.about.get("note", ""),
            }
            for name, model, ms, metric in zip(
                names, models, milliseconds, scene.metrics, strict=True
            )
        ],
    }


def check_models(models: Sequence[LoadedModel], truth: Truth) -> None:
    """UserError unless their answers can stand beside each other, and beside the truth."""
    first = models[0]
    for model in models[1:]:
        if model.task.name != first.task.name:
            raise UserError(
                f"{first.path} is of {first.task.name} and {model.path} of {model.task.name}; "
                "compare models of one task"
            )
        if model.classes != first.classes or model.input_spec.channels != first.input_spec.channels:
            raise UserError(f"{first.path} and {model.path} have different classes or channels")
    if truth.labels is not None and first.task.name != "segmentation":
        raise UserError("--labels: is of segmentation; give a recipe with its data root instead")
    own = getattr(truth.reader, "classes", None)
    if own and list(own) != first.classes:
        raise UserError(
            f"{first.path} has the classes {', '.join(first.classes)}; the recipe's data has {', '.join(own)}"
        )


class Scene:
    """Draws and scores frame after frame."""

    def __init__(
        self,
        models: Sequence[LoadedModel],
        names: Sequence[str],
        milliseconds: Sequence[float],
        views: Views,
        width: int,
        truth: Truth,
    ) -> None:
        self.models = models
        self.times = [f"{name}\n{ms:.3g} ms" for name, ms in zip(names, milliseconds, strict=True)]
        self.views, self.width = views, width
        self.metrics = [model.task.metric(model.device) for model in models]
        self.reader = truth.reader
        self.has_truth = truth.reader is not None or truth.labels is not None
        self.known = 0

    @torch.no_grad()
    def row(self, frame: Frame) -> tuple[list[str], list[np.ndarray]]:
        """Titles and pictures of one frame: image, truth where there is any at all, and each network's answer."""
        task, image = self.models[0].task, as_rgb(frame.image)
        titles, pictures = [f"image\n{_short(frame.name)}"], [image]
        if self.has_truth:
            titles.append("truth\n")
            pictures.append(image if frame.target is None else drawn(task, image, frame.target))
        self.known += frame.target is not None
        column = task.columns[0]
        for model, metric, title in zip(self.models, self.metrics, self.times, strict=True):
            batch = self.batch(model, frame)
            with evaluating(model):
                answer = model.task.predict(model.tapped, batch, self.views)
            pictures.append(drawn(task, image, _for_picture(as_arrays(answer[0]))))
            if frame.target is not None:
                metric.update(answer, batch)
                score = one_score(model, batch, answer)
                title += "" if score is None else f", {score_text(column, score)}"
            titles.append(title)
        return titles, pictures

    def batch(self, model: LoadedModel, frame: Frame) -> Batch:
        """The frame with its truth."""
        if frame.target is None:
            return model.batch(frame.image)
        target, ignore = frame.target, getattr(model.task, "ignore_index", 255)
        if self.reader is not None:
            sample = with_target(self.reader, Sample(frame.image, target, frame.name))
            target, ignore = sample.target, self.reader.ignore_index
        else:  # numbers beyond the classes are the ways in which sets write "unknown"
            target = np.where(target < len(model.classes), target, ignore).astype(np.int32)
        inside = np.ones(frame.image.shape[:2], bool)
        item = Item(frame.image, target, inside, True, frame.name)
        return collate([item], ignore_index=ignore).to(model.device)

    def still(self, rows: Sequence[tuple[list[str], list[np.ndarray]]]) -> Any:
        titles = rows[0][0] if len(rows) == 1 else ["image", *self._columns()]
        return grid(titles, [row for _, row in rows], width=self.width, smooth=True)

    def _columns(self) -> list[str]:
        """Titles over several frames: with the score of all of them."""
        column, texts = self.models[0].task.columns[0], []
        for title, metric in zip(self.times, self.metrics, strict=True):
            value = metric.compute().get(column.key) if self.known else None
            score = "" if value is None else f", {score_text(column, value)}"
            texts.append(title + score)
        return (["truth"] if self.has_truth else []) + texts

    def moving(self, frame: Frame) -> Any:
        titles, pictures = self.row(frame)
        return grid(titles, [pictures], width=self.width, smooth=True)


def one_score(model: LoadedModel, batch: Batch, answer: Any) -> float | None:
    """The task's main score of this frame; None where nothing counts in it."""
    column = model.task.columns[0]
    metric = model.task.metric(model.device)
    metric.update(answer, batch)
    value = metric.compute().get(column.key)
    return None if value is None or value != value else value


def _short(name: str, most: int = 34) -> str:
    name = Path(name).name
    return name if len(name) <= most else "…" + name[-most + 1 :]


def _for_picture(answer: Any) -> Any:
    return SimpleNamespace(**answer) if isinstance(answer, Mapping) else answer


def drawn(task: Any, image: np.ndarray, answer: Any) -> np.ndarray:
    """Classes over the image; boxes and depth as the task draws them."""
    return (
        overlay(task, image, answer) if task.name == "segmentation" else task.picture(image, answer)
    )


@torch.no_grad()
def time_of(models: Sequence[LoadedModel], frame: Frame, views: Views) -> list[float]:
    """Median milliseconds of a frame, decoding included; the models take turns."""
    arms = {}
    for number, model in enumerate(models):
        batch = model.batch(frame.image)
        call = partial(model.task.predict, model.tapped, batch, views)
        arms[str(number)] = partial(timed, call, model.device)
    seconds = interleave(arms, pairs=TIMED, warmup=2)
    return [1000 * statistics.median(values) for values in seconds.values()]
