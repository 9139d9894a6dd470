"""Reading the files of a data set: images, label files, lists of names; a `DataError` names the file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from densekd.data.image_files import (
    decoded,
    opened,
    orientation,
    raw_mode,
    require_plain_file,
    stored_bits,
    upright,
)
from densekd.errors import DataError
from densekd.ops.names import nearest

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def read_image(
    path: str | Path | bytes, channels: int = 3, *, exif: bool = True, name: str = ""
) -> np.ndarray:
    """Decode an 8-bit image to (H, W, channels) uint8, RGB order for three channels.

    Grey files become RGB and RGB files grey where asked; an alpha channel is dropped unless
    `channels` is 4, which only files with four bands can give.

    Args:
        path: the file, or the content of one, which messages call `name`.
        exif: rotate and mirror the image as its EXIF orientation says, as viewers and labelling tools show it.

    Raises:
        DataError: missing, damaged, too large, or of another kind than 8-bit.
    """
    what = name if isinstance(path, bytes) else path
    with opened(path, name) as file:
        bands = len(file.getbands())
        if file.mode.startswith(("I", "F")) or stored_bits(file) > 8:
            raise DataError(
                f"{what} has more than 8 bits a channel ({file.mode}); expected an 8-bit image. "
                "Convert it first."
            )
        if channels == 4 and (bands != 4 or file.mode == "CMYK"):
            raise DataError(f"{what} has {bands} channels ({file.mode}); expected 4 (RGBA)")
        pixels = decoded(file, what)
        if exif:
            pixels = upright(pixels)
        image = np.array(decoded(pixels, what, PIL_MODES[channels]))
    return image.reshape(*image.shape[:2], channels)


def sideways(path: str | Path) -> bool:
    """Whether the EXIF orientation of an image file that can be read exchanges its width and height."""
    with opened(path) as file:
        return orientation(decoded(file, path)) >= 5


def read_labels(path: str | Path | bytes, name: str = "") -> np.ndarray:
    """Decode a label file to its (H, W) numbers: uint8, or int32 where the file has 16 bits.

    Palette PNGs give their indices, never their colours. `path` may be a file's content, which messages call `name`.

    Raises:
        DataError: missing, damaged, too large, a colour image, or compressed with loss.
    """
    what = name if isinstance(path, bytes) else path
    with opened(path, name) as file:
        if file.format in ("JPEG", "MPO"):
            raise DataError(
                f"{what} is a JPEG, whose compression changes label values; expected a PNG of class indices"
            )
        if file.mode not in ("P", "L", "1", "I", "I;16", "I;16B", "I;16L"):
            raise DataError(
                f"{what} is a {file.mode} image with {len(file.getbands())} channels; expected one channel "
                "of class indices (grey or palette PNG). Convert its colours to indices first; the plain folder "
                "reader does so by its option `colours`."
            )
        # Pillow spreads 2- and 4-bit grey over 0..255; labels need the numbers as stored.
        spread = {"L;2": 85, "L;4": 17}.get(raw_mode(file), 1)
        labels = np.array(decoded(file, what))
    if labels.dtype == np.uint8:
        return labels // spread if spread > 1 else labels
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    labels = labels.astype(np.int32)
    if labels.min() < 0 or labels.max() > 65535:
        raise DataError(
            f"{what} holds values from {labels.min()} to {labels.max()}; expected 0..65535"
        )
    return labels


def inside(
    root: Path, name: str | Path, source: object, allow_outside: bool | None = False
) -> Path:
    """The file that a list or an annotation file calls `name`, below `root`.

    Only the name decides: a folder that is a link is the user's own doing, and is entered.

    Args:
        source: where the name stands, for the message.
        allow_outside: take absolute names and those that lead out of `root` as they are; None where the reader has no
            option of this name.

    Raises:
        DataError: the name leads elsewhere.
    """
    if "\0" in str(name):
        raise DataError(f"{source} names a file {str(name)[:100]!r}; no file has such a name")
    # Without `..` in it: where a link stands before one, the system would go elsewhere than the name says.
    path = os.path.normpath(root / name)
    if allow_outside or Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        return Path(path)
    remedy = "" if allow_outside is None else ", or set `allow_outside` if you trust this file"
    raise DataError(
        f"{source} names {str(name)[:200]!r}, which lies outside of {root}; expected files below it. Correct the name"
        f"{remedy}."
    )


def require_folder(path: Path, expected: str) -> Path:
    """`path` itself, where it is a folder.

    Raises:
        DataError: saying what was `expected` there.
    """
    if not path.is_dir():
        found = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"{path} {found}; expected {expected}. Check `root`.")
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
    require_plain_file(path, "a list of names")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of names: {error}") from None
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if not rows:
        raise DataError(f"{path} is empty; expected one sample a line")
    return rows
