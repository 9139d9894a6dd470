"""The frames that `compare` shows, and what is known about each: of files, a recipe's data set, a video or a camera."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from densekd.build.data import build_reader, needs_root
from densekd.build.resolve import resolve
from densekd.config.names import DATASETS
from densekd.config.schema import Config
from densekd.data import video
from densekd.data.base import Sample
from densekd.data.files import read_image, read_labels
from densekd.errors import DataError, UserError
from densekd.workflows.predict_inputs import find_inputs


@dataclass(frozen=True)
class Frame:
    """An image, and what is known about it: a target as a reader gives it, or None."""

    name: str
    image: np.ndarray
    target: Any


@dataclass(frozen=True)
class Truth:
    """Where the truth of an image is found.

    Attributes:
        reader: of the recipe's data; an image is looked up in it by its file.
        labels: a folder of class indices, PNG, of the images' names.
    """

    reader: Any = None
    labels: Path | None = None

    def frame(self, path: Path, channels: int) -> Frame:
        if self.reader is not None:
            index = self._places.get(path.resolve())
            if index is not None:
                return self.at(index)
        image, target = read_image(path, channels), None
        if self.labels is not None:
            file = self.labels / f"{path.stem}.png"
            target = read_labels(file) if file.is_file() else None
            if target is not None and target.shape != image.shape[:2]:
                raise DataError(
                    f"{file} is of another size than {path}: {target.shape} and {image.shape[:2]}"
                )
        return Frame(path.name, image, target)

    def at(self, index: int) -> Frame:
        sample: Sample = self.reader.read(index)
        return Frame(sample.name, sample.image, sample.target)

    @cached_property
    def _places(self) -> dict[Path, int]:
        if not hasattr(self.reader, "paths"):
            return {}
        files = ((self.reader.paths(i)[0], i) for i in range(len(self.reader)))
        return {Path(path).resolve(): i for path, i in files if path is not None}


def reader_of(recipe: Config | None, split: str | None) -> Any:
    """The recipe's data, where it says where its files are; else None."""
    if recipe is None:
        return None
    without = recipe.data.root is None and needs_root(
        resolve(recipe.data.dataset, DATASETS, "data.dataset")
    )
    if without and split is None:
        return None
    return build_reader(recipe.data, split or recipe.data.val_split, training=False)


def spread(items: Sequence[Any], count: int | None) -> list[Any]:
    """So many of them, evenly apart, the first and the last among them."""
    if count is None or len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def frames_of(
    words: Sequence[str], out: Path, truth: Truth, channels: int, count: int | None
) -> Iterator[Frame]:
    """The frames of videos from their beginning; of images and of a data set so many, evenly apart."""
    if not words:
        assert truth.reader is not None
        for index in spread(range(len(truth.reader)), count):
            yield truth.at(index)
        return
    moving = [w for w in words if video.is_video(w) or video.is_camera(w)]
    if moving and len(words) > 1:
        raise UserError(f"--input {' '.join(words)}: give one video alone, or images and folders")
    if moving:
        stream = video.frames(moving[0], channels)
        for number, image in enumerate(itertools.islice(stream, count)):
            yield Frame(f"{Path(moving[0]).name} {number}", image, None)
        return
    for item in spread(find_inputs(words, out), count):
        yield truth.frame(item.path, channels)
