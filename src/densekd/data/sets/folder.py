"""Your own images: a folder of images, a folder of masks with the same file stems, a list of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from densekd.data.files import IMAGE_ENDINGS, read_list, require_folder, unknown_name
from densekd.data.paired_files import FileOptions, PairedFiles
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few

ALL = "all"


class Folder(PairedFiles):
    """A plain folder, in one of three layouts, tried in this order:

    * ``root/{split}/images`` and ``root/{split}/masks``
    * ``root/images/{split}`` and ``root/masks/{split}``
    * ``root/images`` and ``root/masks``, with ``root/{split}.txt`` naming the images of a split, one a
      line (with or without ending); the split ``all`` takes every image and needs no list.

    Masks are one-channel PNGs (grey or palette) of class indices.

    Args:
        root: the folder.
        split: see above.
        classes: class names by index; where None, ``root/classes.txt``, one name a line.
        palette: RGB colours by class, to draw with.
        ignore_index: the number in the masks that is not scored; None means 255, or none at all where
            there are more than 255 classes.
        images, masks: other names for those two folders.
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        DataError: the root, the split, the class list or files are missing; two images share a stem.
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
        **files: Unpack[FileOptions],
    ) -> None:
        root = require_folder(Path(root), f"a folder with {images}/ and {masks}/")
        names = list(classes) if classes is not None else _class_names(root)
        if palette is not None and len(palette) != len(names):
            raise UserError(f"`palette` has {len(palette)} colours for {len(names)} classes")
        image_folder, mask_folder, listed = layout(root, split, images, masks)
        found = _by_stem(image_folder)
        if not found:
            raise DataError(f"{image_folder} holds no images ({', '.join(IMAGE_ENDINGS)})")
        labels = _by_stem(mask_folder) if mask_folder.is_dir() else {}
        stems = sorted(found) if listed is None else _listed(listed, found)
        ignored = [ignore_index] if ignore_index is not None else [255][: len(names) <= 255]
        # A missing mask is given the path it should have, so that the message can name it.
        super().__init__(
            [(found[stem], labels.get(stem, mask_folder / f"{stem}.png")) for stem in stems],
            classes=names,
            palette=[(int(r), int(g), int(b)) for r, g, b in palette] if palette else None,
            ignored=ignored,
            root=root,
            **files,
        )


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


def _by_stem(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    twice = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith("."):
            if path.stem in files:
                twice.append(path)
            files[path.stem] = path
    if twice:
        raise DataError(
            f"{len(twice)} files share their stem with another: {first_few(twice)}. Images and masks are "
            "matched by stem, so each must be there once."
        )
    return files


def _listed(list_file: Path, found: dict[str, Path]) -> list[str]:
    lines = [" ".join(words) for words in read_list(list_file)]
    stems = [line if line in found else Path(line).stem for line in lines]
    absent = [line for line, stem in zip(lines, stems, strict=True) if stem not in found]
    if absent:
        raise DataError(f"{len(absent)} names of {list_file} have no image: {first_few(absent)}")
    return stems
