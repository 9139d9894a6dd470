"""Reading the files of a data set: images, label files, lists of names; a `DataError` names the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from densekd.errors import DataError
from densekd.ops.names import nearest

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


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
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of names: {error}") from None
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if not rows:
        raise DataError(f"{path} is empty; expected one sample a line")
    return rows
