"""Masks that are pictures: colours that stand for classes, and black and white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from densekd.data.files import read_labels, unknown_name
from densekd.data.image_files import decoded, opened, require_plain_file, stored_bits
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few

Colour = tuple[int, int, int]
UNKNOWN = ("error", "ignore")
_UNKNOWN = -2  # of a class map in the making: a colour that is in no table


@dataclass(frozen=True)
class ColourMasks:
    """Reads masks whose classes are colours: a path -> (H, W) class indices.

    Palette files count by their colours; an alpha channel is left out.

    Args:
        indices: RGB colour -> class index.
        ignore_index: the index of what is not scored; `indices` may hold it.
        unknown: ``"error"`` or ``"ignore"``, for colours that `indices` lacks.
    """

    indices: tuple[tuple[Colour, int], ...]
    ignore_index: int
    unknown: str = "error"

    def __call__(self, path: Path) -> np.ndarray:
        """(H, W) uint8, or int16 where the indices do not fit.

        Raises:
            DataError: the file is missing, damaged or compressed with loss, or has unknown colours (the most frequent
                and their pixels).
        """
        codes = _codes(read_colours(path))
        found = _table(self.indices)[codes]
        strange = found == _UNKNOWN
        if strange.any():
            if self.unknown == "error":
                raise DataError(self._complaint(path, codes, found, strange))
            found[strange] = self.ignore_index
        highest = max(index for _, index in self.indices)
        small = self.ignore_index >= 0 and max(highest, self.ignore_index) <= 255
        return found.astype(np.uint8) if small else found

    def _complaint(
        self, path: Path, codes: np.ndarray, found: np.ndarray, strange: np.ndarray
    ) -> str:
        values, counts = np.unique(codes[strange], return_counts=True)
        order = np.argsort(-counts)
        shown = [
            f"({v >> 16}, {v >> 8 & 255}, {v & 255}) at {n} pixels"
            for v, n in zip(values[order].tolist(), counts[order].tolist(), strict=True)
        ]
        why = "Add them to `colours`, or set `unknown` to ignore."
        if len(shown) > 2 and _at_borders(found, strange) > 0.9:
            why = (
                "They lie where known colours meet, so the mask looks anti-aliased, or scaled with interpolation: "
                "write it again without, or set `unknown` to ignore, which leaves these pixels out."
            )
        return f"{path} has {len(shown)} colours that are in no class: {first_few(shown)}. {why}"


@dataclass(frozen=True)
class BinaryMasks:
    """Reads masks of black (0) and white (255, also 1 or 65535): a path -> (H, W) uint8 of 0 and 1.

    Args:
        ignored: the numbers that are not scored.
        ignore_index: what these become.
        unknown: ``"error"`` or ``"ignore"``, for other numbers.
    """

    ignored: tuple[int, ...] = ()
    ignore_index: int = 255
    unknown: str = "error"

    def __call__(self, path: Path) -> np.ndarray:
        """(H, W) uint8.

        Raises:
            DataError: the file is missing, damaged or compressed with loss, has colours, or other numbers.
        """
        grey = _grey(path)
        target = np.full(grey.shape, self.ignore_index, dtype=np.uint8)
        target[grey == 0] = 0
        target[np.isin(grey, (1, 255, 65535))] = 1
        known = np.isin(grey, (0, 1, 255, 65535, *self.ignored))
        target[np.isin(grey, self.ignored)] = self.ignore_index
        if not known.all() and self.unknown == "error":
            values, counts = np.unique(grey[~known], return_counts=True)
            order = np.argsort(-counts)
            shown = [f"{values[i]} at {counts[i]} pixels" for i in order]
            found = np.where(known, target.astype(np.int16), _UNKNOWN)
            why = "Is it a mask of class indices? Then leave `binary` out"
            if len(shown) > 2 and _at_borders(found, ~known) > 0.9:
                why = "They lie at edges, so the mask looks anti-aliased, or scaled with interpolation"
            raise DataError(
                f"{path} has {len(shown)} numbers between black and white: {first_few(shown)}; expected 0 and 255. "
                f"{why}; or set `unknown` to ignore, which leaves these pixels out."
            )
        return target


def read_colours(path: Path) -> np.ndarray:
    """Decode a mask to its colours, (H, W, 3) uint8 RGB.

    Raises:
        DataError: the file is missing or damaged, compressed with loss, or of more than 8 bits.
    """
    with opened(path) as file:
        if file.format in ("JPEG", "MPO"):
            raise DataError(f"{path} is a JPEG, whose compression changes colours; expected a PNG")
        if file.mode.startswith(("I", "F")) or stored_bits(file) > 8:
            raise DataError(f"{path} has more than 8 bits a channel ({file.mode}); expected 8")
        return np.array(decoded(decoded(file, path), path, "RGB"))


def _grey(path: Path) -> np.ndarray:
    """(H, W) numbers of a mask without colours."""
    with opened(path) as file:
        mode, kind = file.mode, file.format
    if mode.startswith("I") or kind in ("JPEG", "MPO"):
        return read_labels(path)  # 16 bits; or the error
    colours = read_colours(path)
    if (colours == colours[..., :1]).all():
        return colours[..., 0]
    if mode == "P":
        return read_labels(path)
    raise DataError(
        f"{path} has colours; expected black and white. A mask of colours is read with `colours`."
    )


def _codes(colours: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) int32: red in the highest of three bytes."""
    wide = colours.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


@lru_cache(maxsize=4)
def _table(indices: tuple[tuple[Colour, int], ...]) -> np.ndarray:
    """All 2^24 colours -> class index: one look-up a pixel. Kept a process, not in readers, which are pickled."""
    table = np.full(1 << 24, _UNKNOWN, dtype=np.int16)
    for (red, green, blue), index in indices:
        table[red << 16 | green << 8 | blue] = index
    return table


def _at_borders(found: np.ndarray, strange: np.ndarray) -> float:
    """The share of the strange pixels that have two known classes within two pixels."""
    near = np.zeros(found.shape, dtype=np.uint8)
    for index in np.unique(found[~strange]):
        near += cv2.dilate((found == index).astype(np.uint8), np.ones((5, 5), np.uint8))
    return float((near[strange] >= 2).mean())


def colour_table(given: Mapping[str, Sequence[int]]) -> dict[str, Colour]:
    """A table of a recipe, checked: class name -> RGB.

    Raises:
        UserError: a colour is not three whole numbers of 0 to 255, two classes share one, or there is none.
    """
    table: dict[str, Colour] = {}
    for name, colour in given.items():
        values = list(colour) if isinstance(colour, (list, tuple)) else []
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
        if len(values) != 3 or not whole or not all(0 <= v <= 255 for v in values):
            raise UserError(
                f"`colours` has {name}: {colour!r}; expected [red, green, blue], each of 0 to 255"
            )
        same = next((other for other, taken in table.items() if taken == tuple(values)), None)
        if same is not None:
            raise UserError(f"`colours` gives {same!r} and {name!r} the same colour {values}")
        table[str(name)] = (values[0], values[1], values[2])
    if not table:
        raise UserError("`colours` is empty; expected class name: [red, green, blue]")
    return table


def read_labelmap(path: Path) -> dict[str, Colour]:
    """CVAT's ``labelmap.txt``: lines of ``name:red,green,blue:parts:actions``, comments after ``#``.

    Raises:
        DataError: the file is missing or has another form.
    """
    require_plain_file(path, "CVAT's labelmap.txt")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    table: dict[str, list[int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *rest = line.split(":")
        try:
            values = [int(value) for value in rest[0].split(",")]
        except (IndexError, ValueError):
            values = []
        if len(values) != 3 or name.strip() in table:
            raise DataError(
                f"{path}: line {number} is {line[:80]!r}; expected name:red,green,blue:parts:actions, each name once"
            )
        table[name.strip()] = values
    try:
        return colour_table(table)
    except UserError as error:
        raise DataError(f"{path}: {error}") from None


def chosen_classes(
    table: Mapping[str, Colour], classes: Sequence[str] | None, ignore_index: int
) -> tuple[tuple[Colour, int], ...]:
    """Colour -> class index for the classes in the order given; the colours of others are ignored.

    Raises:
        DataError: a class has no colour.
    """
    names = list(classes) if classes is not None else list(table)
    for name in names:
        if name not in table:
            raise unknown_name("class", name, table, "the colours")
    places = {name: index for index, name in enumerate(names)}
    return tuple((colour, places.get(name, ignore_index)) for name, colour in table.items())
