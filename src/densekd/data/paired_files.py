"""Data sets over pairs of files: an image, and the file that says what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import cv2
import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample, distinct_colours
from densekd.data.files import PIL_MODES, read_image, read_labels, sideways
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few


class FileOptions(TypedDict, total=False):
    """How a reader treats its files. A reader takes them as ``**files: Unpack[FileOptions]`` and passes them on.

    Attributes:
        channels: the channels of a decoded image: 1 (grey), 3 (RGB, the default) or 4 (RGBA).
        allow_unlabelled: images without a label file become unlabelled samples, whose target is None; by default
            they are errors.
        verify_files: whether the constructor makes sure that every file exists, as it does by default. `data check`
            switches this off, to list what is missing instead of stopping at it.
        labelled: only so many images keep their label: the first by name, of those that have one. The others become
            unlabelled samples with `allow_unlabelled`, which may be all (0), and are left out without it. None, the
            default, keeps all.
        exif: whether images are rotated and mirrored as their EXIF orientation says, as by default. Labels are of the
            image as it is shown then; set False where they were drawn on the pixels as stored.
        allow_outside: whether list files may name files outside of the root; by default they may not.
    """

    channels: int
    allow_unlabelled: bool
    verify_files: bool
    labelled: int | None
    exif: bool
    allow_outside: bool


class FilePairs:
    """Images and the file that belongs to each: what readers of such pairs have in common.

    Args:
        pairs: image path and path of its partner (or None) per sample.
        what: the partner is called in messages.
        root: names are image paths relative to it.
        channels, allow_unlabelled, verify_files, labelled, exif: see `FileOptions`.
        allow_outside: has been obeyed by the reader that made the pairs.

    Attributes:
        kept: the index in `pairs` of each sample; `labelled` may leave some out.

    Raises:
        DataError: no pairs at all, or files missing (the first few and the count).
        UserError: `channels` or `labelled` is out of range.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        *,
        what: str,
        root: Path,
        channels: int = 3,
        allow_unlabelled: bool = False,
        verify_files: bool = True,
        labelled: int | None = None,
        exif: bool = True,
        allow_outside: bool = False,
    ) -> None:
        if channels not in PIL_MODES:
            raise UserError(f"`channels` is {channels}; expected 1 (grey), 3 (RGB) or 4 (RGBA)")
        if not pairs:
            raise DataError(f"no images found under {root}. Check `root` and the split's name.")
        if verify_files:
            pairs = verified(pairs, allow_unlabelled)
        elif allow_unlabelled:
            pairs = [(image, mate if mate and mate.is_file() else None) for image, mate in pairs]
        self.kept = list(range(len(pairs)))
        if labelled is not None:
            chosen = few_labels(pairs, labelled, allow_unlabelled)
            self.kept, pairs = list(chosen), list(chosen.values())
        self.channels = channels
        self._exif = exif
        self._what = what
        self._root = Path(root)
        self._unlabelled_ok = allow_unlabelled
        # Plain strings: a list of Path objects costs every worker several times the memory.
        self._images = [str(image) for image, _ in pairs]
        self._partners = [str(mate) if mate is not None else None for _, mate in pairs]

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        path = Path(self._images[index])
        return (
            path.relative_to(self._root) if path.is_relative_to(self._root) else path
        ).as_posix()

    def paths(self, index: int) -> tuple[Path, Path | None]:
        mate = self._partners[index]
        return Path(self._images[index]), Path(mate) if mate is not None else None

    def read(
        self, index: int, decode: Callable[[Path], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(H, W, C) image and what `decode` makes of its partner, (H, W), or None where unlabelled.

        Raises:
            DataError: a file is missing or damaged, or the two are not of one size.
        """
        image_path, mate_path = self.paths(index)
        image = read_image(image_path, self.channels, exif=self._exif)
        if mate_path is None:
            if not self._unlabelled_ok:
                raise DataError(
                    f"{image_path} has no {self._what} file. Add one, or set `allow_unlabelled`."
                )
            return image, None
        mate = decode(mate_path)
        if mate.shape != image.shape[:2]:
            turned = self._exif and mate.shape == image.shape[1::-1] and sideways(image_path)
            why = (
                ". The image's EXIF orientation was applied, and this file is of the pixels as stored: set `exif` to "
                "false, or rotate the file"
            )
            raise DataError(
                f"{mate_path} is {mate.shape[1]}x{mate.shape[0]} (width x height) and its image "
                f"{image_path} is {image.shape[1]}x{image.shape[0]}; they must be of one size{why if turned else ''}"
            )
        return image, mate


class PairedFiles:
    """A `SegmentationSet` over pairs of files.

    Args:
        pairs: image path and label path (or None) per sample.
        classes: one name per class index.
        palette: one RGB colour per class; `distinct_colours` where None.
        table: number in the label files -> class index; numbers it lacks are errors.
        ignored: numbers in the label files that are not scored, even where `table` has them.
        decode: reads a label file to (H, W) class indices, in place of `table` and `ignored`.
        root: names are image paths relative to it.
        files: see `FileOptions`.

    Raises:
        DataError: no pairs at all, or files missing (the first few and the count).
        UserError: `channels` or `labelled` is out of range.
    """

    task = "segmentation"

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        *,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]] | None = None,
        table: Mapping[int, int] | None = None,
        ignored: Iterable[int] = (),
        decode: Callable[[Path], np.ndarray] | None = None,
        root: Path,
        **files: Unpack[FileOptions],
    ) -> None:
        self._pairs = FilePairs(pairs, what="label", root=root, **files)
        self.channels = self._pairs.channels
        self.classes = list(classes)
        self.palette = list(palette) if palette is not None else distinct_colours(len(classes))
        # 255 is a class of its own in sets of more than 255 classes.
        self.ignore_index = IGNORE_INDEX if len(self.classes) <= IGNORE_INDEX else -1
        if table is None:
            table = {index: index for index in range(len(self.classes))}
        self._decode = decode
        self._table, self._invalid = _lookup(table, ignored, len(self.classes), self.ignore_index)
        self._legal = _ranges(sorted({*table, *ignored}))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        return self._pairs.name(index)

    def paths(self, index: int) -> tuple[Path, Path | None]:
        return self._pairs.paths(index)

    def read(self, index: int) -> Sample:
        image, labels = self._pairs.read(index, self._decode or read_labels)
        path = self.paths(index)[1]
        if labels is not None and path is not None and self._decode is None:
            labels = self._to_classes(labels, path)
        return Sample(image, labels, self.name(index))

    def _to_classes(self, labels: np.ndarray, path: Path) -> np.ndarray:
        """(H, W) numbers of the file -> (H, W) class indices, uint8 or int16."""
        # cv2.LUT takes a tenth of the time of NumPy's indexing, for 8-bit labels only.
        small = labels.dtype == np.uint8
        mapped = cv2.LUT(labels, self._table[:256]) if small else self._table[labels]
        bad = mapped == self._invalid
        if bad.any():
            values = np.unique(labels[bad])
            shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
            raise DataError(
                f"{path} holds label values outside the classes: {shown} ({int(bad.sum())} pixels); "
                f"legal are {self._legal} ({self.num_classes} classes). Check the class list, or "
                "whether the label files are of another form."
            )
        return mapped


def verified(
    pairs: Sequence[tuple[Path, Path | None]], allow_unlabelled: bool
) -> list[tuple[Path, Path | None]]:
    """The pairs, with None for absent labels where those are allowed."""
    missing_images = [image for image, _ in pairs if not image.is_file()]
    if missing_images:
        raise DataError(
            f"{len(missing_images)} of {len(pairs)} images do not exist: {first_few(missing_images)}"
        )
    checked = [(image, label if label and label.is_file() else None) for image, label in pairs]
    bare = [
        f"{image} (expected {wanted})" if wanted else str(image)
        for (image, wanted), (_, label) in zip(pairs, checked, strict=True)
        if label is None
    ]
    if bare and not allow_unlabelled:
        raise DataError(
            f"{len(bare)} of {len(pairs)} images have no label: {first_few(bare)}. Add the label "
            "files, or set `allow_unlabelled` to use these images without."
        )
    return checked


def few_labels(
    pairs: Sequence[tuple[Path, Path | None]], labelled: int, allow_unlabelled: bool
) -> dict[int, tuple[Path, Path | None]]:
    """The pairs of a set in which `labelled` images have a label, by their index in `pairs` (see `FileOptions`).

    Raises:
        UserError: there are not so many images with a label.
    """
    with_label = [index for index, (_, label) in enumerate(pairs) if label is not None]
    least = 0 if allow_unlabelled else 1
    if not least <= labelled <= len(with_label):
        raise UserError(
            f"`labelled` is {labelled}; expected {least} to {len(with_label)}, the number of images with a label"
        )
    chosen = set(sorted(with_label, key=lambda index: pairs[index][0].as_posix())[:labelled])
    if not allow_unlabelled:
        return {index: pairs[index] for index in sorted(chosen)}
    return {
        index: (image, label if index in chosen else None)
        for index, (image, label) in enumerate(pairs)
    }


def _lookup(
    table: Mapping[int, int], ignored: Iterable[int], num_classes: int, ignore_index: int
) -> tuple[np.ndarray, int]:
    """A 65536-entry array from file values to classes, and the entry that marks an illegal value."""
    # Eight bits hold up to 254 classes beside 255 (ignored) and 254 (illegal).
    small = num_classes <= 254 and ignore_index == IGNORE_INDEX
    invalid = 254 if small else -2
    lookup = np.full(65536, invalid, dtype=np.uint8 if small else np.int16)
    for value, index in table.items():
        lookup[value] = index
    for value in ignored:
        lookup[value] = ignore_index
    return lookup, invalid


def _ranges(values: Sequence[int]) -> str:
    """[0, 1, 2, 255] -> "0-2, 255"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
