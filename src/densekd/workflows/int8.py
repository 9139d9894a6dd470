"""int8 files: which images they are calibrated on, and what the score loses by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from densekd.build.data import build_reader, build_views
from densekd.build.networks import check_origin
from densekd.config.schema import Config
from densekd.data.files import read_image
from densekd.engine.folder import RunFolder
from densekd.errors import DataError, UserError
from densekd.export import quantise
from densekd.export.program import padded
from densekd.ops.resize import resize_image
from densekd.tasks import Task
from densekd.tasks.base import Column
from densekd.types import InputSpec
from densekd.workflows.evaluate import alone, evaluate_network
from densekd.workflows.load import LoadedModel
from densekd.workflows.predict_inputs import find_inputs
from densekd.workflows.recipe import read_recipe, say_code


@dataclass(frozen=True)
class Int8:
    """What an int8 file is calibrated on and scored with.

    Attributes:
        images: (H, W, C) uint8 each; called once.
        source: where they come from, in words.
        size: (height, width) of an image -> that which the network sees.
        score: model -> the main score on validation images; None where no truth is known.
        column: of that score.
    """

    images: Callable[[], Iterator[np.ndarray]]
    source: str
    size: Callable[[int, int], tuple[int, int]]
    score: Callable[[LoadedModel], float] | None
    column: Column


def int8_data(
    model: LoadedModel, recipe: Config | None, calib: str | None, count: int, limit: int | None
) -> Int8:
    """Training images of the recipe or of the run's own, or the images of a folder.

    Args:
        calib: the root of the recipe's data set, or a folder of images; None takes the recipe's own root.
        count: images to calibrate on, spread over the set.
        limit: validation images to score; None takes all.

    Raises:
        UserError: there is no image to be had.
    """
    config = recipe or _own_recipe(model.path)
    column = model.task.columns[0]
    reader, reason = None, "there is no recipe: give --recipe, or a run"
    if config is not None:
        if calib is not None:
            config = replace(config, data=replace(config.data, root=calib))
        try:
            # A set that takes no folder (the built-in scenes) refuses one.
            reader = build_reader(config.data, config.data.train_split, training=True)
        except (DataError, UserError) as error:
            reason = str(error)
    if reader is None or config is None:
        if calib is None or not Path(calib).is_dir():
            raise UserError(f"--int8 needs images to calibrate on: give --calib FOLDER ({reason})")
        found = [item.path for item in find_inputs([calib], Path(calib, "nothing"))]
        paths = _spread(found, count)

        def from_folder() -> Iterator[np.ndarray]:
            for path in paths:
                yield read_image(path, model.input_spec.channels)

        source = f"{len(paths)} images of {calib}"
        return Int8(from_folder, source, lambda h, w: (h, w), None, column)

    places = _spread(range(len(reader)), count)

    def from_reader() -> Iterator[np.ndarray]:
        for place in places:
            yield reader.read(place).image

    views = build_views(config.evaluate)
    settings = alone(config)

    def score(scored: LoadedModel) -> float:
        scores = evaluate_network(
            settings,
            lambda task: of_task(scored, task),
            settings.data.val_split,
            name=str(scored.path),
            note="",
            device="cpu",
            quiet=True,
            limit=limit,
        )
        return float(scores[column.key])

    source = f"{len(places)} images of {config.data.train_split}"
    return Int8(from_reader, source, lambda h, w: views.sizes(h, w)[0], score, column)


def of_task(model: LoadedModel, task: Task) -> tuple[nn.Module, InputSpec]:
    """The network, where it was trained for this task and its classes."""
    check_origin(model.about, task, str(model.path))
    return model.model, model.input_spec


def _own_recipe(path: Path) -> Config | None:
    """That of the run whose checkpoint this is."""
    folder = RunFolder(path.parent.parent)
    if not folder.config.exists():
        return None
    config = read_recipe(folder.config)
    say_code(config, str(folder.config))
    return config


def _spread(items: Any, count: int) -> list[Any]:
    step = max(1, len(items) // count)
    return list(items[::step])[:count]


def quantised(content: bytes, about: dict[str, Any], data: Int8) -> tuple[bytes, dict[str, Any]]:
    """The int8 file, and what is said of it."""
    unit = int(about["multiple_of"])
    fill = [value / 255 for value in InputSpec(**about["model"]["input"]).fill()]

    def inputs() -> Iterator[np.ndarray]:
        for image in data.images():
            pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 255
            seen = resize_image(pixels, data.size(*image.shape[:2]))
            yield np.ascontiguousarray(padded(seen, unit, fill).numpy())

    done, count = quantise(content, inputs())
    return done, {"calibrated": data.source if count else ""}


def measured(data: Int8, before: LoadedModel, after: LoadedModel) -> dict[str, Any]:
    """The main score of both on the same images."""
    assert data.score is not None
    column = data.column
    scores = {"before": data.score(before), "after": data.score(after)}
    return {
        "key": column.key,
        "heading": column.heading,
        "factor": column.factor,
        "decimals": column.decimals,
        **scores,
    }


def int8_text(result: dict[str, Any]) -> list[str]:
    """What the score lost."""
    lines = [f"int8, calibrated on {result['calibrated']}"]
    if "scores" not in result:
        return [
            *lines,
            "the score was not measured: no validation images with truth are known; give --recipe RECIPE and the data "
            "root as --calib",
        ]
    found = result["scores"]
    heading, factor, decimals = found["heading"], found["factor"], found["decimals"]
    before, after = factor * found["before"], factor * found["after"]
    lines.append(
        f"{heading} on validation images: float {before:.{decimals}f}, int8 {after:.{decimals}f}, "
        f"change {after - before:+.{decimals}f}"
    )
    return lines
