"""What every data set gives: samples by index, with class names, colours and one clear error for each bad file.

A reader is a `DenseSet`; most are a `densekd.data.paired_files.PairedFiles`, which holds image and label paths and a
table from the numbers in the label files to class indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

IGNORE_INDEX = 255


@dataclass
class Sample:
    """One image and what is known about it.

    Attributes:
        image: (H, W, C) uint8, RGB where C is 3.
        target: what is known about it: a bare (H, W) integer array is a class map; else an object of a `TargetKind`,
            such as `BoxTarget` or `DepthTarget`. None where nothing is known.
        name: unique in its set, to name it in messages.
    """

    image: np.ndarray
    target: Any
    name: str


class DenseSet(Protocol):
    """What loaders and checks use of a data set, whatever its kind of truth.

    A reader says which kind its targets are of in an attribute `target`, the class (such as `BoxTarget`), or by the
    name of a task of ours in an attribute `task` (``"detection"``, ``"depth"``); without both they are class maps.
    Readers of boxes also have `category_ids`, the annotation file's own number of each class. Depth has no classes. A
    reader whose samples are made of other files than `paths` names lists all of them by a method
    ``sources(index) -> list[Path]``, which is empty where the reader's arguments alone decide: `cached` decodes a
    sample again when one of its files changes.
    """

    classes: list[str]
    palette: list[tuple[int, int, int]]
    ignore_index: int
    channels: int

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name `read(index)` will give its sample, without reading it."""
        ...

    def paths(self, index: int) -> tuple[Path | None, Path | None]:
        """Image file and label file; None for what is not a file."""
        ...

    def read(self, index: int) -> Sample:
        """Decode one pair.

        Raises:
            DataError: naming the file, where it is missing, damaged or does not fit its partner.
        """
        ...


class SegmentationSet(DenseSet, Protocol):
    """A `DenseSet` of class maps, whose values are 0..num_classes-1 or ignore_index."""

    @property
    def num_classes(self) -> int: ...


def sources_of(reader: Any, index: int) -> list[Path]:
    """The files that a sample is made of; empty where its reader names none."""
    if hasattr(reader, "sources"):
        return list(reader.sources(index))
    files = reader.paths(index) if hasattr(reader, "paths") else ()
    return [path for path in files if path is not None]


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """The PASCAL VOC colour map: bits of the index, dealt to the high bits of red, green and blue."""
    colours = []
    for index in range(count):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((colour[0], colour[1], colour[2]))
    return colours
