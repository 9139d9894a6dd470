"""Images without labels: those of any folder, and those of a data set whose labels are ignored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from densekd.data.base import IGNORE_INDEX, DenseSet, Sample, sources_of
from densekd.data.files import IMAGE_ENDINGS, PIL_MODES, read_image, require_folder
from densekd.errors import DataError, UserError
from densekd.targets import kind_of_set


class ImageFolder:
    """All images in a folder and in the folders inside it, in the order of their names; none has a label.

    Files and folders whose name begins with a dot are left out, and so is every file without the ending of an image.

    Args:
        root: the folder.
        channels: of a decoded image: 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        DataError: there is no such folder, or no image in it.
        UserError: `channels` is out of range.
    """

    def __init__(self, root: str | Path, *, channels: int = 3) -> None:
        if channels not in PIL_MODES:
            raise UserError(f"`channels` is {channels}; expected 1 (grey), 3 (RGB) or 4 (RGBA)")
        self._root = str(require_folder(Path(root).expanduser(), "a folder of images"))
        self._names = sorted(_images_below(self._root))
        if not self._names:
            raise DataError(
                f"{root} holds no images, nor do the folders in it ({', '.join(IMAGE_ENDINGS)}). Check `root`."
            )
        self.classes: list[str] = []
        self.palette: list[tuple[int, int, int]] = []
        self.ignore_index = IGNORE_INDEX
        self.channels = channels

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def paths(self, index: int) -> tuple[Path, None]:
        return Path(self._root, self._names[index]), None

    def read(self, index: int) -> Sample:
        return Sample(read_image(self.paths(index)[0], self.channels), None, self.name(index))


def _images_below(root: str) -> Iterator[str]:
    """Paths relative to `root`, with slashes; a folder that links lead to more than once is entered once."""
    entered = set()
    for folder, inside, files in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in entered:
            inside.clear()
            continue
        entered.add(place)
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in files:
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()


class WithoutLabels:
    """The images of one data set as unlabelled samples of another: with its classes and its kind of truth.

    Args:
        reader: the images; of whatever kind its targets are.
        of: the data set that the images are added to.

    Raises:
        UserError: the images of the two have not the same number of channels.
    """

    def __init__(self, reader: DenseSet, of: DenseSet) -> None:
        if reader.channels != of.channels:
            raise UserError(
                f"the unlabelled images have {reader.channels} channels and the labelled ones {of.channels}; "
                "read both with the same number"
            )
        self.reader = reader
        self.target = kind_of_set(of)
        self.classes = of.classes
        self.palette = of.palette
        self.ignore_index = of.ignore_index
        self.channels = of.channels

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        return self.reader.name(index)

    def paths(self, index: int) -> tuple[Path | None, None]:
        return self.reader.paths(index)[0], None

    def sources(self, index: int) -> list[Path]:
        return sources_of(self.reader, index)

    def read(self, index: int) -> Sample:
        return replace(self.reader.read(index), target=None)
