"""What every data set gives: samples by index, with class names, colours and one clear error for each bad file.

A reader is a `DenseSet`; most are a `densekd.data.paired_files.PairedFiles`, which holds image and label paths and a
table from the numbers in the label files to class indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Unpack

import numpy as np
from PIL import Image

from densekd.data.file_options import FileOptions, few_labels
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few, nearest

IGNORE_INDEX = 255


@dataclass
class Sample:
    """One image and what is known about it.

    Attributes:
        image: (H, W, C) uint8, RGB where C is 3.
        target: what is known about it: a bare (H, W) integer array is a class map; else an object of a `TargetKind`,
            such as `BoxTarget` or `DepthTarget`. None where nothing is known.
        name: unique in its set, to name it in messages.
    """

    image: np.ndarray
    target: Any
    name: str


class DenseSet(Protocol):
    """What loaders and checks use of a data set, whatever its kind of truth.

    A reader says which kind its targets are of in an attribute `target`, the class (such as `BoxTarget`), or by the
    name of a task of ours in an attribute `task` (``"detection"``, ``"depth"``); without both they are class maps.
    Readers of boxes also have `category_ids`, the annotation file's own number of each class. Depth has no classes. A
    reader whose samples are made of other files than `paths` names lists all of them by a method
    ``sources(index) -> list[Path]``, which is empty where the reader's arguments alone decide: `cached` decodes a
    sample again when one of its files changes.
    """

    classes: list[str]
    palette: list[tuple[int, int, int]]
    ignore_index: int
    channels: int

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name `read(index)` will give its sample, without reading it."""
        ...

    def paths(self, index: int) -> tuple[Path | None, Path | None]:
        """Image file and label file; None for what is not a file."""
        ...

    def read(self, index: int) -> Sample:
        """Decode one pair.

        Raises:
            DataError: naming the file, where it is missing, damaged or does not fit its partner.
        """
        ...


class SegmentationSet(DenseSet, Protocol):
    """A `DenseSet` of class maps, whose values are 0..num_classes-1 or ignore_index."""

    @property
    def num_classes(self) -> int: ...


def task_of(reader: DenseSet) -> str:
    """``"segmentation"``, ``"detection"`` or ``"depth"``; a reader that does not say is one of class maps."""
    return getattr(reader, "task", "segmentation")


class FilePairs:
    """Images and the file that belongs to each: what readers of such pairs have in common.

    Args:
        pairs: image path and path of its partner (or None) per sample.
        what: the partner is called in messages.
        root: names are image paths relative to it.
        channels, allow_unlabelled, verify_files, labelled: see `FileOptions`.

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
    ) -> None:
        if channels not in PIL_MODES:
            raise UserError(f"channels is {channels}; expected 1 (grey), 3 (RGB) or 4 (RGBA)")
        if not pairs:
            raise DataError(f"no images found under {root}. Check root and the split's name.")
        if verify_files:
            pairs = verified(pairs, allow_unlabelled)
        elif allow_unlabelled:
            pairs = [(image, mate if mate and mate.is_file() else None) for image, mate in pairs]
        self.kept = list(range(len(pairs)))
        if labelled is not None:
            chosen = few_labels(pairs, labelled, allow_unlabelled)
            self.kept, pairs = list(chosen), list(chosen.values())
        self.channels = channels
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
        image = read_image(image_path, self.channels)
        if mate_path is None:
            if not self._unlabelled_ok:
                raise DataError(
                    f"{image_path} has no {self._what} file. Add one, or set allow_unlabelled."
                )
            return image, None
        mate = decode(mate_path)
        if mate.shape != image.shape[:2]:
            raise DataError(
                f"{mate_path} is {mate.shape[1]}x{mate.shape[0]} (width x height) and its image "
                f"{image_path} is {image.shape[1]}x{image.shape[0]}; they must be of one size"
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
        root: names are image paths relative to it.
        files: `channels`, `allow_unlabelled`, `verify_files` and `labelled`, see `FileOptions`.

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
        image, labels = self._pairs.read(index, read_labels)
        path = self.paths(index)[1]
        if labels is None or path is None:
            return Sample(image, None, self.name(index))
        return Sample(image, self._to_classes(labels, path), self.name(index))

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


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Decode an 8-bit image to (H, W, channels) uint8, RGB order for three channels.

    Grey files become RGB and RGB files grey where asked; an alpha channel is dropped unless
    `channels` is 4, which only files with four bands can give. EXIF rotation is not applied.

    Raises:
        DataError: missing, damaged, or of another kind than 8-bit.
    """
    with opened(path) as file:
        bands = len(file.getbands())
        if file.mode.startswith(("I", "F")):
            raise DataError(
                f"{path} has more than 8 bits a channel ({file.mode}); expected an 8-bit image. "
                "Convert it first."
            )
        if channels == 4 and (bands != 4 or file.mode == "CMYK"):
            raise DataError(f"{path} has {bands} channels ({file.mode}); expected 4 (RGBA)")
        image = np.array(decoded(file, path, PIL_MODES[channels]))
    return image.reshape(*image.shape[:2], channels)


def _raw_mode(file: Image.Image) -> str:
    """How the pixels are stored, where Pillow says (``"L;4"``: four bits of grey)."""
    tiles = getattr(file, "tile", None)
    return str(tiles[0][3]) if tiles else ""


def read_labels(path: str | Path) -> np.ndarray:
    """Decode a label file to its (H, W) numbers: uint8, or int32 where the file has 16 bits.

    Palette PNGs give their indices, never their colours.

    Raises:
        DataError: missing, damaged, a colour image, or compressed with loss.
    """
    with opened(path) as file:
        if file.format == "JPEG":
            raise DataError(
                f"{path} is a JPEG, whose compression changes label values; expected a PNG of class indices"
            )
        if file.mode not in ("P", "L", "1", "I", "I;16", "I;16B", "I;16L"):
            raise DataError(
                f"{path} is a {file.mode} image with {len(file.getbands())} channels; expected one channel "
                "of class indices (grey or palette PNG). Convert its colours to indices first."
            )
        # Pillow spreads 2- and 4-bit grey over 0..255; labels need the numbers as stored.
        spread = {"L;2": 85, "L;4": 17}.get(_raw_mode(file), 1)
        labels = np.array(decoded(file, path))
    if labels.dtype == np.uint8:
        return labels // spread if spread > 1 else labels
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    labels = labels.astype(np.int32)
    if labels.min() < 0 or labels.max() > 65535:
        raise DataError(
            f"{path} holds values from {labels.min()} to {labels.max()}; expected 0..65535"
        )
    return labels


def opened(path: str | Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except _DECODE_ERRORS as error:
        raise DataError(f"{path} cannot be opened as an image: {error}") from None


def decoded(file: Image.Image, path: str | Path, mode: str | None = None) -> Image.Image:
    try:
        file.load()
        return file if mode is None or file.mode == mode else file.convert(mode)
    except _DECODE_ERRORS as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from None


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """The PASCAL VOC colour map: bits of the index, dealt to the high bits of red, green and blue."""
    colours = []
    for index in range(count):
        colour = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                colour[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((colour[0], colour[1], colour[2]))
    return colours


def require_folder(path: Path, expected: str) -> Path:
    """`path` itself, where it is a folder.

    Raises:
        DataError: saying what was `expected` there.
    """
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}; expected {expected}. Check root.")
    return path


def unknown_name(kind: str, given: str, known: Iterable[str], where: str | Path = "") -> DataError:
    """The error for a name that is none of `known`, with the nearest one."""
    known = sorted(known)
    near = nearest(given, known)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    place = f" in {where}" if where else ""
    return DataError(
        f"no {kind} {given!r}{place}; there is {', '.join(known) or 'none at all'}.{hint}"
    )


def read_list(path: Path) -> list[list[str]]:
    """The words of each line of a list file; blank lines and lines starting with # are left out.

    Raises:
        DataError: an empty or unreadable file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of names: {error}") from None
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if not rows:
        raise DataError(f"{path} is empty; expected one sample a line")
    return rows


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
            "files, or set allow_unlabelled to use these images without."
        )
    return checked


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
