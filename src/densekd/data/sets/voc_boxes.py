"""PASCAL VOC's boxes: one XML file an image, 20 classes, difficult objects not scored."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample, distinct_colours
from densekd.data.files import inside, read_list, require_folder, unknown_name
from densekd.data.image_files import require_plain_file
from densekd.data.sets._box_files import box_text, check_channels, fit_boxes, sized_image
from densekd.data.sets.voc import CLASSES as WITH_BACKGROUND
from densekd.errors import DataError
from densekd.ops.names import first_few
from densekd.targets import BoxTarget, box_areas

CLASSES = WITH_BACKGROUND[1:]
_YEARS = ("", "VOC2007", "VOC2012", "VOCdevkit/VOC2007", "VOCdevkit/VOC2012")


class VOCBoxes:
    """A split of PASCAL VOC's detection sets, or of any set in their layout with these 20 classes.

    VOC's corners are pixel numbers from 1, the last one inside; here they become ``xmin - 1, ymin - 1, xmax, ymax``,
    the edges of those pixels. Difficult objects are ignored ones.

    Args:
        root: ``VOC2007``, ``VOC2012`` or the ``VOCdevkit`` (or a folder around it) that holds one of them.
        split: a list in ``ImageSets/Main``, such as train, val, trainval or test.
        channels: 1, 3 or 4.
        exif: see `FileOptions`.
        verify_files: see `PairedFiles`; annotations are read with their images.

    Attributes:
        category_ids: 1 to 20, as COCO-style conversions of VOC number the classes.

    Raises:
        DataError: missing root, list or files; `read` names what is wrong in an annotation.
    """

    task = "detection"
    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        channels: int = 3,
        exif: bool = True,
        verify_files: bool = True,
    ) -> None:
        check_channels(channels)
        root = require_folder(Path(root), "VOC2007 with JPEGImages/ and Annotations/")
        years = [root / year for year in _YEARS if (root / year / "ImageSets" / "Main").is_dir()]
        if len(years) > 1 and years[0] != root:
            raise DataError(f"{root} holds {first_few(years)}; set `root` to one of them")
        root = years[0] if years else root
        require_folder(root / "JPEGImages", "the images of VOC")
        require_folder(root / "Annotations", "the XML files of VOC")
        lists = require_folder(root / "ImageSets" / "Main", "the split lists of VOC")
        if not (lists / f"{split}.txt").is_file():
            raise unknown_name(
                "VOC split", split, [path.stem for path in lists.glob("*.txt")], lists
            )
        # Lists of one class ("car_train.txt") have a second word, -1 for images without it; all are taken.
        self._ids = [words[0] for words in read_list(lists / f"{split}.txt")]
        for number in self._ids:
            inside(root / "JPEGImages", number, lists / f"{split}.txt", None)
        self._root = root
        self._numbers = _image_numbers(self._ids)
        self.channels = channels
        self._exif = exif
        self.classes = list(CLASSES)
        self.palette = distinct_colours(len(CLASSES) + 1)[1:]
        self.category_ids = list(range(1, len(CLASSES) + 1))
        if verify_files:
            self._verify()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, index: int) -> str:
        return f"{self._ids[index]}.jpg"

    def paths(self, index: int) -> tuple[Path, Path]:
        stem = self._ids[index]
        return self._root / "JPEGImages" / f"{stem}.jpg", self._root / "Annotations" / f"{stem}.xml"

    def read(self, index: int) -> Sample:
        image, annotation = self.paths(index)
        target, size = read_voc_xml(annotation, self.classes, self._numbers[index])
        pixels = sized_image(image, self.channels, size, self._exif)
        return Sample(pixels, target, self.name(index))

    def _verify(self) -> None:
        missing = [path for i in range(len(self)) for path in self.paths(i) if not path.is_file()]
        if missing:
            raise DataError(f"{len(missing)} files of VOC do not exist: {first_few(missing)}")


def read_voc_xml(
    path: Path, classes: list[str], image_id: int
) -> tuple[BoxTarget, tuple[int, int]]:
    """The objects of one annotation, and the image's (height, width).

    Raises:
        DataError: missing or no XML of VOC's form; an unknown class; a box without area or outside.
    """
    tree = _parse(path)
    size = (_pixels(tree, "size/height", path), _pixels(tree, "size/width", path))
    boxes, labels, difficult = [], [], []
    for number, entry in enumerate(tree.findall("object"), 1):
        where = f"object {number} of {path}"
        name = (entry.findtext("name") or "").strip()
        if name not in classes:
            raise unknown_name("class", name, classes, where)
        xmin, ymin, xmax, ymax = (
            _value(entry, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        boxes.append((xmin - 1, ymin - 1, xmax, ymax))
        labels.append(classes.index(name))
        difficult.append((entry.findtext("difficult") or "0").strip() == "1")
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    clipped, wrong = fit_boxes(corners, np.tile(size, (len(corners), 1)))
    if wrong.any():
        shown = [f"object {i + 1} {box_text(corners[i])}" for i in np.flatnonzero(wrong)]
        raise DataError(
            f"{path}: boxes (x0, y0, x1, y1) without area or outside the image of {size[1]}x{size[0]}: "
            f"{first_few(shown)}"
        )
    return BoxTarget(
        clipped, np.array(labels), np.array(difficult), box_areas(clipped), image_id
    ), size


def _parse(path: Path) -> ElementTree.Element:
    require_plain_file(path, "VOC's XML")
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    # Entities are declared there; a few lines of them can grow to gigabytes. VOC's files have none.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path} declares a document type; expected plain XML as VOC has it")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} is damaged XML: {error}") from None


def _value(entry: ElementTree.Element, key: str, where: str | Path) -> float:
    text = entry.findtext(key)
    try:
        return float(text or "")
    except ValueError:
        raise DataError(f"{where} has {key} = {text!r}; expected a number") from None


def _pixels(tree: ElementTree.Element, key: str, path: Path) -> int:
    value = _value(tree, key, path)
    if not 1 <= value < 1e6:
        raise DataError(f"{path} has {key} = {value:g}; expected the image's side in pixels")
    return int(value)


def _image_numbers(stems: list[str]) -> list[int]:
    """000012 -> 12 and 2008_000012 -> 2008000012; places in the list where names are no numbers."""
    digits = [stem.replace("_", "") for stem in stems]
    if all(text.isdecimal() and len(text) <= 18 for text in digits):
        numbers = [int(text) for text in digits]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(stems) + 1))
