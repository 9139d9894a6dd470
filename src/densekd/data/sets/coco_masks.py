"""COCO's object masks (polygons and RLE) as class maps for segmentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample, distinct_colours
from densekd.data.sets.coco import Coco
from densekd.errors import DataError, UserError


class CocoMasks(Coco):
    """A split of COCO, or of any set annotated in its form, whose objects are painted into class maps.

    Category ids, which have gaps, become indices by ascending id: 0 is the background, 1 the first category.

    Where objects overlap, the smaller one (in pixels) is in front, or the later one in the file where they are equal.
    The pixels of crowds are ignored where no other object covers them. Polygons are filled by COCO's own rule, through
    faster-coco-eval (``pip install 'densekd[det]'``), so that masks are those of pycocotools.

    Args:
        root, split, annotations, images, channels, exif, allow_outside, verify_files: see `Coco`.
        classes: names of the categories to keep, in the order of their indices; the objects of the others count as
            background.
        background: the name of the class of pixels without an object, index 0; None ignores these pixels, and the
            first category has the index 0.
        overlap: ``"smaller"``: the smaller object is in front; ``"ignore"``: pixels at which objects of different
            classes meet are ignored (as torchvision's training scripts do).
        keep_empty: keep images without an object to learn from; False leaves them out.

    Attributes:
        category_ids: the file's id of each category kept.

    Raises:
        DataError: as `Coco`; `read` names annotations whose segmentation is of another form or size.
        UserError: `background` is also the name of a category; faster-coco-eval is not installed.
    """

    task = "segmentation"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        classes: Sequence[str] | None = None,
        background: str | None = "background",
        overlap: Literal["smaller", "ignore"] = "smaller",
        keep_empty: bool = True,
        channels: int = 3,
        exif: bool = True,
        allow_outside: bool = False,
        verify_files: bool = True,
    ) -> None:
        if overlap not in ("smaller", "ignore"):
            raise UserError(f"`overlap` is {overlap!r}; expected 'smaller' or 'ignore'")
        _polygon_masks()
        self._background = background
        self._overlap = overlap
        super().__init__(
            root,
            split,
            annotations=annotations,
            images=images,
            classes=classes,
            keep_empty=keep_empty,
            channels=channels,
            exif=exif,
            allow_outside=allow_outside,
            verify_files=verify_files,
        )

    def read(self, index: int) -> Sample:
        image = self._image_of[index]
        if image in self._faults:
            raise DataError(self._faults[image])
        pixels = self._pixels(index)
        target = self._class_map(int(image), pixels.shape[:2])
        return Sample(pixels, target, self.name(index))

    def _class_map(self, image: int, size: tuple[int, ...]) -> np.ndarray:
        """(H, W) class indices."""
        objects = []
        for place in range(self._first[image], self._first[image + 1]):
            where = f"{self._path}: annotation {self._ids[place]}"
            mask = object_mask(self._segmentation(place), (size[0], size[1]), where)
            objects.append((bool(self._crowds[place]), int(mask.sum()), mask, place))
        small = self.ignore_index == IGNORE_INDEX
        empty = self.ignore_index if self._background is None else 0
        target = np.full(size, empty, dtype=np.uint8 if small else np.int16)
        covered = np.zeros(size, dtype=bool)
        # Crowds first, then from the largest to the smallest; equal ones in the file's order.
        for crowd, _, mask, place in sorted(objects, key=lambda one: (not one[0], -one[1])):
            label = self.ignore_index if crowd else int(self._labels[place])
            if self._overlap == "ignore" and not crowd:
                meeting = mask & covered & (target != label)
                target[mask] = label
                target[meeting] = self.ignore_index
                covered |= mask
            else:
                target[mask] = label
        return target

    def _segmentation(self, place: int) -> Any:
        return json.loads(self._text[self._ends[place] : self._ends[place + 1]].tobytes())

    def _take_categories(self, rows: list[dict], classes: Sequence[str] | None) -> None:
        super()._take_categories(rows, classes)
        if self._background is not None:
            if self._background in self.classes:
                raise UserError(
                    f"`background` is {self._background!r}, which is a category of {self._path} too; give it another "
                    "name, or null to ignore pixels without an object"
                )
            self.classes = [self._background, *self.classes]
            self.palette = distinct_colours(len(self.classes))
        self.ignore_index = IGNORE_INDEX if len(self.classes) <= IGNORE_INDEX else -1

    def _take_objects(self, rows: list[dict], repair: bool) -> None:
        """All objects, sorted by image; what outlines them as one text: a list would be copied into every worker."""
        ids, images, labels = self._placed(rows)
        keep = labels >= 0
        for i in np.flatnonzero(keep):
            if not isinstance(rows[i].get("segmentation"), (list, dict)):
                self._faults[int(images[i])] = (
                    f"{self._path}: annotation {ids[i]} of {self._files[images[i]]} has no segmentation; expected "
                    "polygons or RLE. Boxes alone are read by `coco`, for detection."
                )
        order = np.flatnonzero(keep)[np.argsort(images[keep], kind="stable")]
        texts = [json.dumps(rows[i].get("segmentation")).encode() for i in order]
        self._text = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, texts)])
        self._ids = ids[order]
        self._labels = labels[order] + (self._background is not None)
        self._crowds = np.array([bool(rows[i].get("iscrowd", 0)) for i in order], dtype=bool)
        self._first = np.searchsorted(images[order], np.arange(len(self._image_ids) + 1))


def object_mask(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool of an annotation's polygons (a list of x, y, x, y, ... in pixels) or RLE (a dict).

    Raises:
        DataError: it has another form, lies far outside of the image, or has another size; `where` begins the message.
    """
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, size, where)
    polygons = [_polygon(one, size, where) for one in segmentation]
    if not polygons:
        return np.zeros(size, dtype=bool)
    masks = _polygon_masks()
    runs = masks.merge(masks.frPyObjects(polygons, *size))
    return masks.decode(runs).astype(bool)


def _polygon(given: Any, size: tuple[int, int], where: str) -> list[float]:
    try:
        points = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2:
        raise DataError(
            f"{where} has a polygon {str(given)[:100]}; expected x, y, x, y, ... of three corners or more"
        )
    height, width = size
    reach = np.tile([width, height], len(points) // 2)
    # The filling takes memory by a polygon's length, so a corner at 1e30 must not come to it.
    if not (np.isfinite(points) & (points >= -reach) & (points <= 2 * reach)).all():
        raise DataError(f"{where} has a polygon far outside of its image of {width}x{height}")
    return points.tolist()


def _from_runs(given: dict, size: tuple[int, int], where: str) -> np.ndarray:
    """COCO's run lengths: of 0 and 1 in turn, column by column; as numbers, or packed into text."""
    counts = given.get("counts")
    if given.get("size") != list(size):
        raise DataError(
            f"{where} has RLE of size {str(given.get('size'))[:50]} and an image of {list(size)} (height, width); they "
            "must be of one size"
        )
    try:
        runs = np.array(_unpacked(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        runs = np.full(1, -1)
    # Before anything is written out: a few digits can stand for terabytes. The sum in floats cannot wrap around.
    if runs.ndim != 1 or (runs < 0).any() or runs.sum(dtype=np.float64) != size[0] * size[1]:
        raise DataError(
            f"{where} has RLE that is damaged; expected run lengths whose sum is {size[0]} x {size[1]} pixels"
        )
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return values.reshape(size[1], size[0]).T


def _unpacked(text: str) -> list[int]:
    """Numbers of COCO's packed RLE: five bits a character from 48 on, the sixth says that more follow.

    From the third on, a number is the difference from the one two places before.
    """
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(text)
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(text)
    return numbers


def _polygon_masks() -> Any:
    try:
        from faster_coco_eval import mask
    except ImportError:
        raise UserError(
            "polygons are filled through faster-coco-eval, which is not installed: pip install 'densekd[det]'"
        ) from None
    return mask
