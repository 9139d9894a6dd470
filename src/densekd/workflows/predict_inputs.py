"""Images, folders and patterns of `predict` -> image files and the names of their outputs."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from densekd.data import video
from densekd.errors import UserError

# What a folder or a pattern is searched for; a file that is named itself may end in anything.
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Input:
    """An image to predict.

    Attributes:
        name: its path below the folder or pattern that it was found by, with its own suffix.
    """

    path: Path
    name: Path

    @property
    def output(self) -> Path:
        """The name of its outputs below their folder."""
        return self.name.with_suffix(".png")


def find_all(given: Sequence[str], out: Path) -> tuple[list[Input], list[str]]:
    """The images, see `find_inputs`, and the videos and cameras among the words.

    Raises:
        UserError: two videos have one name, or a folder of images has a video's.
    """
    moving = list(dict.fromkeys(w for w in given if video.is_video(w) or video.is_camera(w)))
    others = [word for word in given if word not in moving]
    missing = [w for w in moving if not video.is_camera(w) and not Path(w).is_file()]
    if missing:
        raise UserError(
            f"{missing[0]} does not exist; INPUT is an image, a folder, a pattern, a video or a camera"
        )
    found = find_inputs(others, out) if others or not moving else []
    names = [Path(word).stem for word in moving if not video.is_camera(word)]
    folders = {item.output.parts[0] for item in found if len(item.output.parts) > 1}
    for name in names:
        if names.count(name) > 1 or name in folders:
            raise UserError(
                f"two inputs would be written into the folder {name}; predict them into two folders"
            )
    return found, moving


def find_inputs(given: Sequence[str], out: Path) -> list[Input]:
    """The images, in the order given and by name within a folder.

    Args:
        given: image files, folders (searched with all folders in them), patterns (``'drive/**/*.jpg'``).
        out: the folder of the outputs; what lies in it is no input.

    Raises:
        UserError: something does not exist or holds no image, or two images would have the same outputs.
    """
    if not given:
        raise UserError("predict needs at least one INPUT: an image, a folder or a pattern")
    found: dict[Path, Input] = {}
    for word in given:
        images = [i for i in _images(word) if not i.path.resolve().is_relative_to(out.resolve())]
        if not images:
            raise UserError(f"{word}: holds no image ({', '.join(sorted(SUFFIXES))})")
        for image in images:
            other = found.setdefault(image.output, image)
            if other.path.resolve() != image.path.resolve():
                raise UserError(
                    f"{other.path} and {image.path} would both be written as {image.output}; give the folder that "
                    "holds both, rename one, or predict them into two folders"
                )
    return list(found.values())


def _images(word: str) -> list[Input]:
    """What one word of the command line stands for."""
    path = Path(word)
    if path.is_file():
        return [Input(path, Path(path.name))]
    if path.is_dir():
        return [Input(p, p.relative_to(path)) for p in _below(path)]
    if not glob.has_magic(word):
        raise UserError(f"{word} does not exist; INPUT is an image, a folder or a pattern")
    matches = sorted(Path(p) for p in glob.glob(word, recursive=True))
    if not matches:
        raise UserError(f"{word} matches nothing")
    base = _before_magic(path)
    files = [p for p in matches if p.is_file() and p.suffix.lower() in SUFFIXES]
    for folder in (p for p in matches if p.is_dir() and "**" not in word):
        files += _below(folder)
    return [Input(p, p.relative_to(base)) for p in dict.fromkeys(files)]


def _below(folder: Path) -> list[Path]:
    """Image files in a folder and all folders in it, hidden ones left out."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(place, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


def _before_magic(pattern: Path) -> Path:
    """The part of a pattern that has no wildcard."""
    plain: list[str] = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)
