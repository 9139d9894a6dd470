"""COCO's boxes: one JSON file a split, images of any folder, category ids with gaps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample, distinct_colours
from densekd.data.files import inside, require_folder, unknown_name
from densekd.data.image_files import require_plain_file
from densekd.data.sets._box_files import box_text, check_channels, fit_boxes, sized_image
from densekd.errors import DataError
from densekd.ops.names import first_few
from densekd.targets import BoxTarget


class Coco:
    """A split of COCO, or of any set annotated in its form.

    Crowds (``iscrowd``) are ignored objects. Areas are the file's (of the masks), those of the boxes where it has
    none. Boxes ``x, y, width, height`` become corners as they are, without the pixel that older code takes off.

    Args:
        root: the folder.
        split: such as train2017 or val2017.
        annotations: the JSON file, relative to root; ``annotations/instances_{split}.json`` where None.
        images: folder of the images, relative to root; where None, the first of ``{split}``, ``images/{split}``,
            ``images`` and root itself that holds the first image of the file.
        classes: names of the categories to keep, in the order of their indices; None keeps all, by ascending id.
        keep_empty: keep images without an object to learn from; False leaves them out (usual in training).
        repair: clip boxes that stick out of their image and drop those without area, which are errors otherwise.
            COCO's own train2017 needs it: a few of its boxes have no height. Two pixels outside are always clipped.
        channels: 1, 3 or 4.
        exif, allow_outside: see `FileOptions`; names of images (``file_name``) may not lead out of their folder.
        verify_files: make sure now that every image is there and every box is good; `data check` switches this off,
            to list what is wrong.

    Attributes:
        category_ids: the file's id of each class index, as ``results.json`` wants them.

    Raises:
        DataError: a folder, file or category is missing; a file is no COCO annotation; ids are doubled; annotations
            name images or categories that are not there; boxes are bad.
    """

    task = "detection"
    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        classes: Sequence[str] | None = None,
        keep_empty: bool = True,
        repair: bool = False,
        channels: int = 3,
        exif: bool = True,
        allow_outside: bool = False,
        verify_files: bool = True,
    ) -> None:
        check_channels(channels)
        self.channels = channels
        self._exif = exif
        root = require_folder(Path(root), "a folder with annotations/ and images")
        path = root / (annotations or f"annotations/instances_{split}.json")
        if not path.is_file() and annotations is None and (root / "annotations").is_dir():
            found = [p.stem.removeprefix("instances_") for p in root.glob("annotations/*.json")]
            raise unknown_name("split", split, found, root / "annotations")
        content = _read_json(path)
        self._path = path
        self._faults: dict[int, str] = {}  # what is wrong with an image's annotations, by its place
        self._take_categories(content["categories"], classes)
        self._take_images(content["images"])
        self._take_objects(content["annotations"], repair)
        if not keep_empty:
            self._leave_out_empty()
        self._folder = _image_folder(root, split, images, self._files[0])
        for name in self._files:
            inside(self._folder, name, path, allow_outside)
        if verify_files:
            self._verify()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def paths(self, index: int) -> tuple[Path, Path]:
        return self._folder / self._files[index], self._path

    def read(self, index: int) -> Sample:
        image = self._image_of[index]
        if image in self._faults:
            raise DataError(self._faults[image])
        objects = slice(self._first[image], self._first[image + 1])
        target = BoxTarget(
            self._boxes[objects],
            self._labels[objects],
            self._crowds[objects],
            self._areas[objects],
            int(self._image_ids[image]),
        )
        return Sample(self._pixels(index), target, self.name(index))

    def _pixels(self, index: int) -> np.ndarray:
        """The image, (H, W, C), of the size that the file says."""
        height, width = (int(side) for side in self._sizes[self._image_of[index]])
        path = self._folder / self._files[index]
        return sized_image(path, self.channels, (height, width), self._exif)

    def _take_categories(self, rows: list[dict], classes: Sequence[str] | None) -> None:
        ids, names = (
            self._column(rows, "categories", "id", _whole),
            [str(row.get("name")) for row in rows],
        )
        for what, values in (("id", ids), ("name", names)):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise DataError(f"{self._path}: categories share the {what} {first_few(twice)}")
        if not ids:
            raise DataError(f"{self._path} has no categories; expected one a class")
        known = dict(sorted(zip(ids, names, strict=True)))
        by_name = {name: number for number, name in known.items()}
        for name in classes or ():
            if name not in by_name:
                raise unknown_name("category", name, by_name, self._path)
        self.category_ids = [by_name[name] for name in classes] if classes else list(known)
        self.classes = [known[number] for number in self.category_ids]
        self.palette = distinct_colours(len(self.classes) + 1)[1:]  # the first is black
        self._known_ids = np.array(list(known))

    def _take_images(self, rows: list[dict]) -> None:
        if not rows:
            raise DataError(f"{self._path} has no images")
        ids = np.array(self._column(rows, "images", "id", _whole))
        twice = [number for number, count in Counter(ids.tolist()).items() if count > 1]
        if twice:
            raise DataError(
                f"{self._path}: {len(twice)} image ids occur more than once: {first_few(twice)}"
            )
        order = np.argsort(ids)
        names = self._column(rows, "images", "file_name", str)
        sizes = np.array(
            [self._column(rows, "images", side, _side) for side in ("height", "width")]
        ).T
        self._image_ids = ids[order]
        self._files = [names[i] for i in order]
        self._sizes = sizes[order]
        self._image_of = np.arange(len(ids))

    def _take_objects(self, rows: list[dict], repair: bool) -> None:
        """Flat arrays of all objects, sorted by image: lists of dicts would be copied into every worker."""
        ids, images, labels = self._placed(rows)
        boxes = np.array(self._column(rows, "annotations", "bbox", _four), dtype=np.float64)
        boxes = boxes.reshape(-1, 4)
        own = np.array([_number(row.get("area")) for row in rows], dtype=np.float64)
        crowds = np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=bool)
        areas = np.where(np.isnan(own), boxes[:, 2] * boxes[:, 3], own)
        boxes[:, 2:] += boxes[:, :2]
        clipped, wrong = fit_boxes(boxes, self._sizes[images])
        keep = labels >= 0
        if repair:
            keep &= (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        else:
            for i in np.flatnonzero(wrong & keep):
                height, width = self._sizes[images[i]]
                self._faults[int(images[i])] = (
                    f"{self._path}: annotation {ids[i]} has the box {box_text(boxes[i])} (x0, y0, x1, y1) in "
                    f"{self._files[images[i]]} of {width}x{height} pixels: it has no area or sticks out. Mend the "
                    "file, or set `repair` to clip such boxes and leave out those of which nothing remains."
                )
        order = np.flatnonzero(keep)[np.argsort(images[keep], kind="stable")]
        self._boxes = clipped[order]
        self._labels = labels[order]
        self._crowds = crowds[order]
        self._areas = areas[order].astype(np.float32)
        self._first = np.searchsorted(images[order], np.arange(len(self._image_ids) + 1))

    def _placed(self, rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each annotation its id, the place of its image, and its class index, -1 where that is not kept."""
        ids = np.array(self._column(rows, "annotations", "id", _whole), dtype=np.int64)
        image_ids = np.array(self._column(rows, "annotations", "image_id", _whole), dtype=np.int64)
        categories = np.array(
            self._column(rows, "annotations", "category_id", _whole), dtype=np.int64
        )
        images = np.searchsorted(self._image_ids, image_ids)
        images = np.minimum(images, len(self._image_ids) - 1)
        for what, wrong, values in (
            ("image", self._image_ids[images] != image_ids, image_ids),
            ("category", ~np.isin(categories, self._known_ids), categories),
        ):
            if wrong.any():
                shown = [
                    f"annotation {ids[i]} of {what} {values[i]}" for i in np.flatnonzero(wrong)
                ]
                raise DataError(
                    f"{self._path}: {len(shown)} annotations name a {what} that the file does not have: "
                    f"{first_few(shown)}"
                )
        table = {number: index for index, number in enumerate(self.category_ids)}
        labels = np.array([table.get(number, -1) for number in categories.tolist()], dtype=np.int64)
        return ids, images, labels

    def _leave_out_empty(self) -> None:
        learned = np.add.reduceat(np.append(~self._crowds, False).astype(int), self._first[:-1])
        learned[np.diff(self._first) == 0] = 0  # reduceat gives an empty run its first element
        kept = [i for i in range(len(self._image_ids)) if learned[i] or i in self._faults]
        if not kept:
            raise DataError(
                f"{self._path}: no image has an object; set `keep_empty` to use them anyway"
            )
        self._files = [self._files[i] for i in kept]
        self._image_of = np.array(kept)

    def _verify(self) -> None:
        if self._faults:
            raise DataError(
                f"{len(self._faults)} images have bad annotations. {first_few(list(self._faults.values())[:1])}"
            )
        missing = [name for name in self._files if not (self._folder / name).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self)} images of {self._path} are not in {self._folder}: "
                f"{first_few(missing)}. Check `root`, or give the folder with `images`."
            )

    def _column(self, rows: list[dict], part: str, key: str, form: Any) -> list:
        try:
            return [form(row[key]) for row in rows]
        except (KeyError, TypeError, ValueError, OverflowError):
            bad = next(row for row in rows if not _has(row, key, form))
            raise DataError(
                f"{self._path}: an entry of {part!r} lacks a usable {key!r}: {str(bad)[:200]}"
            ) from None


def _whole(value: Any) -> int:
    """As int(), within what arrays hold: infinities and ids of 30 digits are no numbers of a file of COCO."""
    number = int(value)
    if abs(number) >= 2**63:
        raise ValueError(value)
    return number


def _has(row: Any, key: str, form: Any) -> bool:
    try:
        form(row[key])
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return True


def _side(value: Any) -> int:
    number = _whole(value)
    if not 1 <= number < 10**6:
        raise ValueError(value)
    return number


def _four(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = (float(value) for value in box)
    return x, y, width, height


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _read_json(path: Path) -> Mapping[str, list[dict]]:
    try:
        require_plain_file(path, "COCO annotations")
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except DataError as error:
        raise DataError(f"{error}. Check `root`, or set `annotations`.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    parts = ("images", "annotations", "categories")
    absent = [
        p for p in parts if not isinstance(content, dict) or not isinstance(content.get(p), list)
    ]
    if absent:
        raise DataError(f"{path} has no list of {' and '.join(absent)}; expected COCO's form")
    return content


def _image_folder(root: Path, split: str, images: str | Path | None, first: str) -> Path:
    if images is not None:
        return require_folder(root / images, "the images")
    candidates = [root / split, root / "images" / split, root / "images", root]
    here = [folder for folder in candidates if folder.is_dir()]
    return next((folder for folder in here if (folder / first).is_file()), here[0])
