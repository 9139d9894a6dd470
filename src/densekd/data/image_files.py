"""The one door to image files: every image, label map and depth map of a file or of bytes is opened here.

Pillow chooses a decoder by a file's first bytes, whatever its name, and some of its decoders start other programs
(EPS: Ghostscript). So it is given a list of formats, none of which does. Before anything is decoded, a file must be a
plain one (a pipe would hang, a device never end), and its header must state no more pixels than the limit.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from densekd.errors import DataError, UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PIXELS = "DENSEKD_MAX_PIXELS"
# What Pillow's decoders raise on damaged files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
# EXIF orientation -> how the stored pixels are moved to stand upright (EXIF 2.3, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def pixel_limit() -> int | None:
    """The most pixels that an image may have; None where there is no limit.

    The environment's `DENSEKD_MAX_PIXELS`, or else Pillow's own `PIL.Image.MAX_IMAGE_PIXELS` (89 478 485: as RGB a
    quarter of a gigabyte). It is no setting of a recipe: how much memory there is, the machine's owner knows.

    Raises:
        UserError: the variable holds no positive whole number.
    """
    given = os.environ.get(PIXELS)
    if given is None:
        return Image.MAX_IMAGE_PIXELS
    if not given.isdecimal() or len(given) > 15 or int(given) < 1:
        raise UserError(f"{PIXELS} is {given!r}; expected the largest number of pixels of an image")
    return int(given)


def check_pixels(width: int, height: int, what: object) -> None:
    """DataError where an image of this size is beyond the limit."""
    limit = pixel_limit()
    if limit is not None and width * height > limit:
        raise DataError(
            f"{what} is {width}x{height}, which are {width * height:,} pixels; expected at most {limit:,}. Cut it into "
            f"tiles, or raise the limit by the environment variable {PIXELS}"
        )


def require_plain_file(path: str | Path, expected: str = "a file") -> None:
    """Nothing is opened.

    Raises:
        DataError: the path does not exist or is no plain file (a folder, a pipe, a device); links are followed.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{path} does not exist; expected {expected}") from None
        raise DataError(f"{str(path)[:200]} cannot be read: {error}") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise DataError(
            f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}; expected {expected}"
        )


def opened(source: str | Path | bytes, name: str = "") -> Image.Image:
    """The image with its header read and no pixel decoded.

    Args:
        source: a path, or a file's content, which messages call `name`.

    Raises:
        DataError: missing, no plain file, no image of `FORMATS`, or of more pixels than `pixel_limit` says.
    """
    what = name if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        require_plain_file(source, "an image")
    limit = pixel_limit()
    if limit is not None and (Image.MAX_IMAGE_PIXELS or limit) < limit:
        Image.MAX_IMAGE_PIXELS = limit  # Pillow checks by itself, and its message names no remedy
    try:
        with warnings.catch_warnings():
            # Pillow warns above the limit, at which we stop.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
            )
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{what} is too large: {error} Cut it into tiles, or raise the limit by the environment variable {PIXELS}"
        ) from None
    except DECODE_ERRORS as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is none of {', '.join(FORMATS)}" if unknown else error
        raise DataError(f"{what} cannot be opened as an image: {reason}") from None
    try:
        check_pixels(*file.size, what)
    except DataError:
        file.close()
        raise
    return file


def decoded(file: Image.Image, path: str | Path, mode: str | None = None) -> Image.Image:
    """The image with its pixels, converted where it has another mode.

    Raises:
        DataError: truncated or damaged.
    """
    try:
        file.load()
        return file if mode is None or file.mode == mode else file.convert(mode)
    except DECODE_ERRORS as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from None


def orientation(file: Image.Image) -> int:
    """The EXIF orientation of a decoded image, 1 to 8; 1 where it has none that can be read."""
    try:
        found = file.getexif().get(ExifTags.Base.Orientation, 1)
    except (*DECODE_ERRORS, KeyError, TypeError, AttributeError):
        return 1  # viewers, too, show a picture whose EXIF block is damaged as it is stored
    return found if found in _UPRIGHT else 1


def upright(file: Image.Image) -> Image.Image:
    """A decoded image rotated and mirrored as its EXIF orientation says; Pillow does so with TIFF by itself."""
    turn = _UPRIGHT.get(orientation(file))
    return file if turn is None else file.transpose(turn)


def stored_bits(file: Image.Image) -> int:
    """Bits of a channel as the file has them: Pillow reads 16-bit colour as if it had 8. Before it is decoded."""
    for tile in getattr(file, "tile", None) or ():
        parts = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(part, str) and ";16" in part for part in parts):
            return 16
        # Portable pixmaps: the largest value stands beside the mode.
        if tile[0].startswith("ppm") and isinstance(parts[-1], int) and parts[-1] > 255:
            return 16
    return 8


def raw_mode(file: Image.Image) -> str:
    """How the pixels are stored, where Pillow says (``"L;4"``: four bits of grey). Before it is decoded."""
    tiles = getattr(file, "tile", None)
    return str(tiles[0][3]) if tiles else ""
