"""Pairs of images and 16-bit depth maps, as most depth sets have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample
from densekd.data.image_files import decoded, opened, require_plain_file
from densekd.data.paired_files import FileOptions, FilePairs
from densekd.errors import DataError, UserError
from densekd.targets import DepthTarget, Intrinsics, resized_intrinsics

UNITS = {
    "mm": 1 / 1000,
    "m/1000": 1 / 1000,
    "m/256": 1 / 256,
    "m/5000": 1 / 5000,
    "cm": 1 / 100,
    "m": 1.0,
}


class DepthFiles:
    """A `DenseSet` over pairs of image and depth file.

    Args:
        pairs: the image path and depth path (or None) of each sample.
        unit: the unit of the depth files' numbers: ``"mm"`` (or ``"m/1000"``: Kinect, NYUv2), ``"m/256"`` (KITTI),
            ``"m/5000"`` (TUM RGB-D as published), ``"cm"``, ``"m"``, or the metres of one step. There is no default: a
            wrong one trains without complaint.
        intrinsics: for each pair fx, fy, cx, cy, or a JSON file with these keys, or None.
        intrinsics_size: (height, width) of the images that the intrinsics are of; None means each image's own.
        root: names are image paths relative to it.
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        UserError: the unit is unknown, or intrinsics have another form.
        DataError: there are no pairs at all, or files are missing.
    """

    task = "depth"
    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        *,
        unit: str | float,
        intrinsics: Sequence[Intrinsics | Path | None] | None = None,
        intrinsics_size: Sequence[int] | None = None,
        root: Path,
        **files: Unpack[FileOptions],
    ) -> None:
        self.metres = metres_a_step(unit)
        self._pairs = FilePairs(
            pairs,
            what="depth",
            root=root,
            **files,
        )
        self.classes: list[str] = []
        self.palette: list[tuple[int, int, int]] = []
        self.channels = self._pairs.channels
        given = intrinsics if intrinsics is not None else [None] * len(pairs)
        self._intrinsics = [given[index] for index in self._pairs.kept]
        self._intrinsics_size = _size(intrinsics_size)

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        return self._pairs.name(index)

    def paths(self, index: int) -> tuple[Path, Path | None]:
        return self._pairs.paths(index)

    def sources(self, index: int) -> list[Path]:
        """Every file that the sample is made of (see `DenseSet`)."""
        image, depth = self.paths(index)
        return [p for p in (image, depth, self._intrinsics[index]) if isinstance(p, Path)]

    def read(self, index: int) -> Sample:
        image, depth = self._pairs.read(index, lambda path: read_depth(path, self.metres))
        if depth is None:
            return Sample(image, None, self.name(index))
        return Sample(image, DepthTarget(depth, self._camera(index, depth.shape)), self.name(index))

    def _camera(self, index: int, size: tuple[int, ...]) -> Intrinsics | None:
        given = self._intrinsics[index]
        camera = read_camera(given) if isinstance(given, Path) else given
        if self._intrinsics_size is None:
            return camera
        return resized_intrinsics(camera, self._intrinsics_size, (size[0], size[1]))


def metres_a_step(unit: str | float) -> float:
    """What one step of a depth file's numbers is in metres.

    Raises:
        UserError: the unit is unknown.
    """
    if isinstance(unit, str) and unit in UNITS:
        return UNITS[unit]
    try:
        metres = float(unit)
    except (TypeError, ValueError):
        metres = 0.0
    if not 0 < metres < float("inf"):
        raise UserError(
            f"`unit` is {unit!r}; expected what one step of the depth files is: {', '.join(UNITS)}, or a number of "
            "metres"
        )
    return metres


def read_depth(path: str | Path, metres: float) -> np.ndarray:
    """Decode a 16-bit grey PNG (or TIFF) to (H, W) float32 metres, 0 where unknown, which may be everywhere.

    Raises:
        DataError: the file is missing, damaged or of another kind, or holds negative numbers.
    """
    with opened(path) as file:
        if file.mode not in ("I", "I;16", "I;16B", "I;16L"):
            bands = len(file.getbands())
            kind = f"8 bits ({file.mode})" if bands == 1 else f"{bands} channels ({file.mode})"
            raise DataError(
                f"{path} has {kind}; expected depth of 16 bits in one channel. Was it saved as a picture?"
            )
        steps = np.array(decoded(file, path))
    if steps.min() < 0:
        raise DataError(
            f"{path} holds negative numbers; expected depth. Remove the pair, or write it again."
        )
    return steps.astype(np.float32) * np.float32(metres)


def read_camera(path: Path) -> Intrinsics:
    """fx, fy, cx, cy in pixels, from a JSON file with these keys.

    Raises:
        DataError: the file is missing or lacks one of them.
    """
    require_plain_file(path, "the camera of an image")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return camera_of([content[key] for key in ("fx", "fy", "cx", "cy")], path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise DataError(str(error)) from None
        raise DataError(
            f"{path} gives no camera; expected JSON with numbers fx, fy, cx, cy in pixels"
        ) from None


def camera_of(values: Any, where: object) -> Intrinsics:
    """Four numbers as fx, fy, cx, cy.

    Raises:
        UserError: there are not four numbers, or a focal length is not positive.
    """
    try:
        fx, fy, cx, cy = (float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: intrinsics are {values!r}; expected fx, fy, cx, cy in pixels"
        ) from None
    if not (0 < fx < float("inf") and 0 < fy < float("inf")) or not np.isfinite([cx, cy]).all():
        raise UserError(
            f"{where}: intrinsics are {values!r}; focal lengths are positive, in pixels"
        )
    return fx, fy, cx, cy


def _size(value: Sequence[int] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if len(value) != 2 or min(value) < 1:
        raise UserError(f"`intrinsics_size` is {value}; expected (height, width) in pixels")
    return int(value[0]), int(value[1])
