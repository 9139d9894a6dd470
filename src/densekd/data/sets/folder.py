"""Your own images: a folder of images, a folder of masks with the same names, a list of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Unpack

from densekd.data.base import IGNORE_INDEX
from densekd.data.files import IMAGE_ENDINGS, read_list, require_folder, unknown_name
from densekd.data.masks import (
    UNKNOWN,
    BinaryMasks,
    ColourMasks,
    chosen_classes,
    colour_table,
    read_labelmap,
)
from densekd.data.paired_files import FileOptions, PairedFiles
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few

ALL = "all"
BINARY = ("background", "foreground")


class Folder(PairedFiles):
    """A plain folder, in one of three layouts, tried in this order:

    * ``root/{split}/images`` and ``root/{split}/masks``
    * ``root/images/{split}`` and ``root/masks/{split}``
    * ``root/images`` and ``root/masks``, with ``root/{split}.txt`` naming the images of a split, one a
      line (with or without ending); the split ``all`` takes every image and needs no list.

    An image and its mask have the same name but for the ending. Where the folder of images holds folders alone, these
    are searched, and the masks' folder has the same folders inside. Masks are one-channel PNGs (grey or palette) of
    class indices, if `colours` or `binary` do not say otherwise.

    CVAT's "Segmentation mask" exports are read with ``split="all", images="JPEGImages", masks="SegmentationClass",
    colours="labelmap.txt"``.

    Args:
        root: the folder.
        split: see above.
        classes: class names by index; where None, ``root/classes.txt``, one name a line, or the names of `colours`,
            or background and foreground with `binary`.
        palette: RGB colours by class, to draw with.
        ignore_index: the number in the masks that is not scored; None means 255, or none at all with `binary` and
            where there are more than 255 classes.
        images, masks: other names for those two folders; they may be one and the same, with endings.
        image_ending, mask_ending: how file names end beyond what a pair shares, such as ``_mask.png``; None means
            the suffix of any image.
        colours: masks are pictures in these colours: class name -> [red, green, blue], or the name of a file in
            `root` of the form of CVAT's ``labelmap.txt``. With `classes` these are kept, in the order given, and the
            others ignored.
        binary: masks are black (0) and white (255), which become classes 0 and 1.
        unknown: ``"error"``: a number or colour in a mask that is none of the above ends the reading of this file;
            ``"ignore"``: such pixels are not scored.
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        DataError: the root, the split, the class list or files are missing; two images share a name.
        UserError: options do not fit each other.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        palette: Sequence[tuple[int, int, int]] | None = None,
        ignore_index: int | None = None,
        images: str = "images",
        masks: str = "masks",
        image_ending: str | None = None,
        mask_ending: str | None = None,
        colours: Mapping[str, Sequence[int]] | str | None = None,
        binary: bool = False,
        unknown: Literal["error", "ignore"] = "error",
        **files: Unpack[FileOptions],
    ) -> None:
        root = require_folder(Path(root), f"a folder with {images}/ and {masks}/")
        if unknown not in UNKNOWN:
            raise UserError(f"`unknown` is {unknown!r}; expected 'error' or 'ignore'")
        if colours is not None and (binary or ignore_index is not None):
            other = "binary" if binary else "ignore_index"
            raise UserError(f"`colours` and `{other}` exclude each other; leave one out")
        table = None if colours is None else _colours(root, colours)
        names = _names(root, classes, table, binary)
        if palette is not None and len(palette) != len(names):
            raise UserError(f"`palette` has {len(palette)} colours for {len(names)} classes")
        image_folder, mask_folder, listed = layout(root, split, images, masks)
        found, labels = _matched(image_folder, mask_folder, image_ending, mask_ending)
        keys = sorted(found) if listed is None else listed_keys(listed, found)
        none_of_them = IGNORE_INDEX if len(names) <= IGNORE_INDEX else -1
        decode: ColourMasks | BinaryMasks | None = None
        ignored: list[int] = [ignore_index] if ignore_index is not None else []
        if table is not None:
            decode = ColourMasks(
                chosen_classes(table, classes, none_of_them), none_of_them, unknown
            )
            palette = palette or [table[name] for name in names]
        elif binary:
            decode = BinaryMasks(tuple(ignored), none_of_them, unknown)
        elif unknown == "ignore":
            ignored += range(len(names), 65536)
        elif ignore_index is None:
            ignored = [255][: len(names) <= 255]
        # A missing mask is given the path it should have, so that the message can name it.
        ending = mask_ending or ".png"
        super().__init__(
            [(found[key], labels.get(key, mask_folder / f"{key}{ending}")) for key in keys],
            classes=names,
            palette=[(int(r), int(g), int(b)) for r, g, b in palette] if palette else None,
            ignored=ignored,
            decode=decode,
            root=root,
            **files,
        )


def _colours(
    root: Path, given: Mapping[str, Sequence[int]] | str
) -> dict[str, tuple[int, int, int]]:
    return read_labelmap(root / given) if isinstance(given, str) else colour_table(given)


def _names(
    root: Path, classes: Sequence[str] | None, table: Mapping[str, object] | None, binary: bool
) -> list[str]:
    if classes is None and table is None and not binary:
        return _class_names(root)
    names = list(classes if classes is not None else table or BINARY)
    if binary and len(names) != 2:
        raise UserError(
            f"`classes` has {len(names)} names; with `binary` there are two, black and white"
        )
    return names


def _class_names(root: Path) -> list[str]:
    path = root / "classes.txt"
    if not path.is_file():
        raise DataError(f"{path} does not exist; write one class name a line, or set `classes`")
    return [" ".join(words) for words in read_list(path)]


def layout(root: Path, split: str, images: str, masks: str) -> tuple[Path, Path, Path | None]:
    """Image folder, mask (or depth) folder, and the list file of the split where there is one."""
    if (root / split / images).is_dir():
        return root / split / images, root / split / masks, None
    if (root / images / split).is_dir():
        return root / images / split, root / masks / split, None
    listed = root / f"{split}.txt"
    if (root / images).is_dir() and (split == ALL or listed.is_file()):
        return root / images, root / masks, None if split == ALL else listed
    known = {path.parent.name for path in root.glob(f"*/{images}")}
    if (root / images).is_dir():
        known |= {path.stem for path in root.glob("*.txt")} - {"classes"} | {ALL}
        known |= {path.name for path in (root / images).iterdir() if path.is_dir()}
    if not known:
        raise DataError(
            f"{root} has neither {split}/{images}/ nor {images}/; expected {images} and {masks} of the same "
            "file stems. Check `root`."
        )
    raise unknown_name("split", split, known, root)


def _matched(
    images: Path, masks: Path, image_ending: str | None, mask_ending: str | None
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks by what their names share."""
    same = images.resolve() == masks.resolve()
    if same and mask_ending is None:
        raise UserError(
            f"images and masks both lie in {images}; say how the names of masks end with `mask_ending`"
        )
    but = mask_ending if same else None
    found = by_key(images, image_ending, nested=False, but=but)
    nested = not found
    if nested:
        found = by_key(images, image_ending, nested=True, but=but)
    if not found:
        wanted = image_ending or ", ".join(IMAGE_ENDINGS)
        raise DataError(f"{images} holds no images ({wanted})")
    return found, by_key(masks, mask_ending, nested=nested) if masks.is_dir() else {}


def by_key(
    folder: Path, ending: str | None, *, nested: bool, but: str | None = None
) -> dict[str, Path]:
    """The images in a folder by their path in it without the ending; hidden files and folders are left out.

    Args:
        ending: of their names, which is left out of the key; None takes any image and leaves its suffix out.
        nested: with those in all folders inside.
        but: names that end so are left out.

    Raises:
        DataError: two files have one key.
    """
    files: dict[str, Path] = {}
    twice = []
    for path in sorted(folder.rglob("*") if nested else folder.iterdir()):
        inner = path.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts) or not _fits(path, ending):
            continue
        if but is not None and path.name.endswith(but):
            continue
        key = inner.as_posix().removesuffix(ending if ending is not None else path.suffix)
        if key in files:
            twice.append(path)
        files[key] = path
    if twice:
        raise DataError(
            f"{len(twice)} files share their stem with another: {first_few(twice)}. Images and what belongs to them "
            "are matched by stem, so each must be there once."
        )
    return files


def _fits(path: Path, ending: str | None) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS if ending is None else path.name.endswith(ending)


def listed_keys(list_file: Path, found: Mapping[str, Path]) -> list[str]:
    """The keys that the lines of a list file stand for: with or without ending, with or without the folder before."""
    lines = [" ".join(words) for words in read_list(list_file)]
    keys = []
    for line in lines:
        forms = (line, line.removesuffix(Path(line).suffix), Path(line).stem)
        keys.append(next((form for form in forms if form in found), None))
    absent = [line for line, key in zip(lines, keys, strict=True) if key is None]
    if absent:
        raise DataError(f"{len(absent)} names of {list_file} have no image: {first_few(absent)}")
    return [key for key in keys if key is not None]
