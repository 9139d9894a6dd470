"""Data sets of dicts: any torch ``Dataset`` whose items are dicts, as a `DenseSet` of any of the three tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import cv2
import numpy as np
from PIL import Image

from densekd.data.base import IGNORE_INDEX, Sample, distinct_colours
from densekd.data.files import PIL_MODES, inside, read_image, read_labels
from densekd.data.image_files import upright
from densekd.data.sets._box_files import check_channels, fit_boxes
from densekd.errors import DataError, UserError
from densekd.targets import BoxTarget, DepthTarget, box_areas

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
_INVALID = 254  # in a table: a number that is no class
BOX_FORMATS = ("xyxy", "xywh", "cxcywh")


class ItemOptions(TypedDict, total=False):
    """The options of `Items`, for readers that pass them on."""

    image: str
    mask: str | None
    boxes: str | None
    labels: str
    depth: str | None
    intrinsics: str | None
    crowd: str | None
    name: str | None
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]] | None
    ignore_index: int | None
    box_format: BoxFormat
    unit: float
    channels: int
    allow_outside: bool
    allow_unlabelled: bool


class Items:
    """Items that are dicts, read by their keys; a key with dots leads into dicts inside (``objects.bbox``).

    One of `mask`, `boxes` and `depth` says what is known, and so the task: segmentation, detection or depth. Values
    may be NumPy arrays, tensors, PIL images or lists; images and masks also the bytes of a file, a path below `root`,
    or ``{"bytes": ..., "path": ...}`` as Hugging Face's tables have them.

    Args:
        items: has ``len(items)`` and ``items[index]``, a dict, the same at each call: random augmentation is ours.
        image: key of the image: (H, W, 3) or (H, W), tensors (3, H, W); uint8, or floats of 0 to 1.
        mask: key of a class map (H, W) of class indices.
        boxes: key of boxes (n, 4) in pixels.
        labels: key of their class indices (n,), beside `boxes`.
        depth: key of depth (H, W), 0 where unknown; `unit` metres a step.
        intrinsics: key of fx, fy, cx, cy in pixels, beside `depth`.
        crowd: key of (n,) true where an object is ignored, beside `boxes`.
        name: key of a name that is unique; None names items by their index.
        classes: class names by index; needed for masks and boxes.
        palette: RGB colours by class, to draw with.
        ignore_index: the number in masks that is not scored; None means 255, or none at all where there are more
            than 255 classes.
        box_format: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.
        unit: metres of one step of `depth`.
        channels: 1, 3 or 4.
        root: the folder of the files that items name.
        allow_outside: whether items may name files outside of `root`.
        allow_unlabelled: items whose `mask`, `boxes` or `depth` is None are unlabelled samples.

    Raises:
        UserError: options do not fit each other, or the first item has no such key.
    """

    ignore_index: int

    def __init__(
        self,
        items: Any,
        *,
        image: str = "image",
        mask: str | None = None,
        boxes: str | None = None,
        labels: str = "labels",
        depth: str | None = None,
        intrinsics: str | None = None,
        crowd: str | None = None,
        name: str | None = None,
        classes: Sequence[str] = (),
        palette: Sequence[tuple[int, int, int]] | None = None,
        ignore_index: int | None = None,
        box_format: BoxFormat = "xyxy",
        unit: float = 1.0,
        channels: int = 3,
        root: str | Path | None = None,
        allow_outside: bool = False,
        allow_unlabelled: bool = False,
    ) -> None:
        given = {
            task: key
            for task, key in (("segmentation", mask), ("detection", boxes), ("depth", depth))
            if key is not None
        }
        if len(given) != 1:
            raise UserError(
                f"`mask`, `boxes` and `depth`: {len(given)} of them are given; expected one, the key of what is known"
            )
        ((self.task, self._key),) = given.items()
        if self.task != "depth" and not classes:
            raise UserError("`classes` is missing; give the names of the classes by index")
        if palette is not None and len(palette) != len(classes):
            raise UserError(f"`palette` has {len(palette)} colours for {len(classes)} classes")
        if box_format not in BOX_FORMATS:
            raise UserError(f"`box_format` is {box_format!r}; expected {', '.join(BOX_FORMATS)}")
        if not 0 < unit < float("inf"):
            raise UserError(f"`unit` is {unit}; expected the metres of one step")
        check_channels(channels)
        self.items = items
        self.classes = [str(one) for one in classes] if self.task != "depth" else []
        colours = [(int(r), int(g), int(b)) for r, g, b in palette] if palette else None
        self.palette = colours or distinct_colours(len(self.classes))
        self.ignore_index = IGNORE_INDEX if len(self.classes) <= IGNORE_INDEX else -1
        self._ignored = ignore_index
        if ignore_index is None and len(self.classes) <= IGNORE_INDEX:
            self._ignored = IGNORE_INDEX
        self._table = _table(len(self.classes), self._ignored)
        self.channels = channels
        self._image, self._labels, self._crowd, self._name = image, labels, crowd, name
        self._intrinsics, self._format, self._unit = intrinsics, box_format, float(unit)
        self._root = None if root is None else Path(root)
        self._allow_outside, self._unlabelled_ok = allow_outside, allow_unlabelled
        if not len(items):
            raise DataError("the data set has no items; expected some")
        self._check_keys(items[0])

    def _check_keys(self, first: Any) -> None:
        if not isinstance(first, Mapping):
            raise UserError(
                f"item 0 of the data set is a {type(first).__name__}; expected a dict with an image and what is known"
            )
        keys = [self._image, self._key, self._intrinsics, self._crowd, self._name]
        if self.task == "detection":
            keys.append(self._labels)
        for key in (one for one in keys if one is not None):
            _value(first, key, "item 0")

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        if self._name is None:
            return f"item {index}"
        return str(_value(self.items[index], self._name, f"item {index}"))

    def paths(self, index: int) -> tuple[None, None]:
        """None twice: an item is not known to be a file."""
        return None, None

    def read(self, index: int) -> Sample:
        where = f"item {index}"
        item = self.items[index]
        if self._name is not None:
            where += f" ({_value(item, self._name, where)})"
        image = self._pixels(_value(item, self._image, where), f"{where}, {self._image!r}")
        known = _value(item, self._key, where)
        name = self.name(index)
        if known is None:
            if not self._unlabelled_ok:
                raise DataError(f"{where} has no {self._key!r}. Add it, or set `allow_unlabelled`.")
            return Sample(image, None, name)
        of = f"{where}, {self._key!r}"
        if self.task == "segmentation":
            return Sample(image, self._class_map(known, image.shape[:2], of), name)
        if self.task == "depth":
            return Sample(image, self._depth(item, known, image.shape[:2], of), name)
        return Sample(image, self._objects(item, known, image.shape[:2], of, index), name)

    def _source(self, value: Any, where: str) -> bytes | Path | None:
        """Bytes or path of a file, where the value is one."""
        if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, (str, Path)):
            return None
        if self._root is None and not self._allow_outside:
            raise DataError(
                f"{where} names a file, {str(value)[:200]!r}, and there is no `root` to look for it"
            )
        return inside(self._root or Path(), value, where, self._allow_outside)

    def _pixels(self, value: Any, where: str) -> np.ndarray:
        source = self._source(value, where)
        if source is not None:
            return read_image(source, self.channels, name=where)
        if isinstance(value, Image.Image):
            if value.mode.startswith(("I", "F")):
                raise DataError(
                    f"{where} has more than 8 bits a channel ({value.mode}); expected 8"
                )
            picture = np.array(upright(value).convert(PIL_MODES[self.channels]))
            return picture.reshape(*picture.shape[:2], self.channels)
        array = _array(value, where)
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim == 3 and _is_tensor(value):
            array = array.transpose(1, 2, 0)  # (H, W, C)
        if np.issubdtype(array.dtype, np.floating) and array.size:
            if not (array.min() >= 0 and array.max() <= 1):
                raise DataError(
                    f"{where} has floats from {array.min():g} to {array.max():g}; expected 0 to 1, or uint8: an image "
                    "that is not normalised yet"
                )
            array = np.rint(array * 255).astype(np.uint8)
        if array.ndim != 3 or array.dtype != np.uint8 or not array.size:
            raise DataError(
                f"{where} has shape {array.shape} and type {array.dtype}; expected (H, W, C), or (C, H, W) as a "
                "tensor, of uint8 or floats of 0 to 1"
            )
        if array.shape[2] == 1 and self.channels == 3:
            array = array.repeat(3, axis=2)
        if array.shape[2] != self.channels:
            raise DataError(
                f"{where} has {array.shape[2]} channels; expected {self.channels} (`channels`)"
            )
        return np.ascontiguousarray(array)

    def _map(self, value: Any, size: tuple[int, ...], where: str) -> np.ndarray:
        """(H, W) of the size of its image."""
        source = self._source(value, where)
        array = _array(value, where) if source is None else read_labels(source, where)
        if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
            array = array[0] if array.shape[0] == 1 else array[..., 0]
        if array.shape != tuple(size):
            raise DataError(
                f"{where} has shape {array.shape} and its image is {size[0]} high and {size[1]} wide; they must be of "
                "one size"
            )
        return array

    def _class_map(self, value: Any, size: tuple[int, ...], where: str) -> np.ndarray:
        labels = self._map(value, size, where)
        if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != bool:
            raise DataError(
                f"{where} has type {labels.dtype}; expected whole numbers, class indices"
            )
        if labels.dtype == np.uint8 and self._table is not None:
            # A tenth of the time of the comparisons below.
            found = cv2.LUT(np.ascontiguousarray(labels), self._table)
            if not (found == _INVALID).any():
                return found
        labels = labels.astype(np.int64)
        ignored = labels == self._ignored if self._ignored is not None else np.zeros(size, bool)
        bad = ~ignored & ((labels < 0) | (labels >= len(self.classes)))
        if bad.any():
            shown = ", ".join(map(str, np.unique(labels[bad])[:10]))
            raise DataError(
                f"{where} holds label values outside the classes: {shown} ({int(bad.sum())} pixels); legal are "
                f"0-{len(self.classes) - 1} and {self._ignored} (ignored). Check the class list."
            )
        labels[ignored] = self.ignore_index
        return labels.astype(np.uint8 if self.ignore_index >= 0 else np.int16)

    def _depth(self, item: Any, value: Any, size: tuple[int, ...], where: str) -> DepthTarget:
        depth = self._map(value, size, where).astype(np.float32) * np.float32(self._unit)
        depth[~np.isfinite(depth)] = 0  # unknown
        if depth.size and depth.min() < 0:
            raise DataError(f"{where} holds negative numbers; expected depth, 0 where unknown")
        if self._intrinsics is None:
            return DepthTarget(depth)
        camera = _value(item, self._intrinsics, where)
        if camera is None:
            return DepthTarget(depth)
        numbers = _array(camera, where).astype(np.float64).ravel()
        if len(numbers) != 4 or not np.isfinite(numbers).all() or min(numbers[:2]) <= 0:
            raise DataError(f"{where} has intrinsics {numbers}; expected fx, fy, cx, cy in pixels")
        return DepthTarget(depth, (numbers[0], numbers[1], numbers[2], numbers[3]))

    def _objects(
        self, item: Any, value: Any, size: tuple[int, ...], where: str, index: int
    ) -> BoxTarget:
        boxes = _array(value, where).astype(np.float64).reshape(-1, 4)
        labels = _array(_value(item, self._labels, where), where).astype(np.int64).ravel()
        crowd = np.zeros(len(boxes), bool)
        if self._crowd is not None:
            crowd = _array(_value(item, self._crowd, where), where).astype(bool).ravel()
        if not len(boxes) == len(labels) == len(crowd):
            raise DataError(
                f"{where} has {len(boxes)} boxes, {len(labels)} labels and {len(crowd)} entries that say what is "
                "ignored; expected one a box"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise DataError(
                f"{where} has labels from {labels.min()} to {labels.max()}; expected 0-{len(self.classes) - 1}"
            )
        if self._format == "cxcywh":
            boxes[:, :2] -= boxes[:, 2:] / 2
        if self._format != "xyxy":
            boxes[:, 2:] += boxes[:, :2]
        clipped, wrong = fit_boxes(boxes, np.tile(size, (len(boxes), 1)))
        if wrong.any():
            raise DataError(
                f"{where} has the box {boxes[wrong][0].tolist()} (x0, y0, x1, y1) in an image of {size[1]}x{size[0]}: "
                "it has no area or sticks out. Is `box_format` right?"
            )
        return BoxTarget(clipped, labels, crowd, box_areas(clipped), index)


def _table(classes: int, ignored: int | None) -> np.ndarray | None:
    """Of each number in an 8-bit mask the class index, 255 (ignored) or `_INVALID`; None where these are classes."""
    if classes > _INVALID:
        return None
    table = np.full(256, _INVALID, dtype=np.uint8)
    table[:classes] = np.arange(classes)
    if ignored is not None and 0 <= ignored < 256:
        table[ignored] = IGNORE_INDEX
    return table


def _value(item: Any, key: str, where: str) -> Any:
    """What a dotted key leads to."""
    found = item
    for part in key.split("."):
        rows = found if isinstance(found, (list, tuple)) else ()
        if rows and all(isinstance(row, Mapping) and part in row for row in rows):
            found = [row[part] for row in rows]  # a list of objects, each with its own parts
            continue
        if not isinstance(found, Mapping) or part not in found:
            has = ", ".join(map(str, found)) if isinstance(found, Mapping) else "no keys"
            raise UserError(f"{where} has no {key!r}; it has {has or 'no keys'}")
        found = found[part]
    return found


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "numpy")


def _array(value: Any, where: str) -> np.ndarray:
    try:
        if _is_tensor(value):
            return value.detach().cpu().numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} is no array: {error}") from None
    if array.dtype == object or array.dtype.kind in "USM":
        raise DataError(f"{where} is a {type(value).__name__} and no array of numbers")
    return array
