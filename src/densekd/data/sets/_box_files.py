"""What readers of box annotations share: rules for boxes that do not fit, and for images of another size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densekd.data.files import PIL_MODES, read_image, sideways
from densekd.errors import DataError, UserError
from densekd.targets import box_areas

# Annotation tools round: COCO's own boxes stick out of their images by fractions of a pixel.
TOLERANCE = 2.0


def fit_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to their images and say which were wrong.

    Args:
        boxes: (n, 4) XYXY in pixels.
        sizes: (n, 2) height and width of each box's image.

    Returns:
        (n, 4) clipped boxes in float32, as they are kept, and (n,) bool: True for a box that sticks out by more than
        `TOLERANCE` pixels or of which nothing remains in these numbers (also one without area, inside out, or with a
        value that is no number).
    """
    limits = np.stack([sizes[:, 1], sizes[:, 0]] * 2, axis=1).astype(np.float64)
    clipped = np.clip(np.nan_to_num(boxes, nan=0.0), 0, limits)
    outside = (np.abs(boxes - clipped) > TOLERANCE).any(axis=1)
    clipped = clipped.astype(np.float32)
    return clipped, outside | (box_areas(clipped) <= 0) | ~np.isfinite(boxes).all(axis=1)


def sized_image(path: Path, channels: int, size: tuple[int, int], exif: bool = True) -> np.ndarray:
    """(H, W, C) of the image at `path`; the annotation gives the image's `size` (height, width).

    Raises:
        DataError: the file is missing or damaged, or the image has another size.
    """
    image = read_image(path, channels, exif=exif)
    if image.shape[:2] != size:
        why = "Was the image rotated or scaled?"
        if exif and image.shape[1::-1] == size and sideways(path):
            why = (
                "The image's EXIF orientation was applied, and the annotation is of the pixels as stored: set `exif` "
                "to false, or correct the annotation."
            )
        raise DataError(
            f"{path} is {image.shape[1]}x{image.shape[0]} (width x height) and its annotation says "
            f"{size[1]}x{size[0]}; the objects would not fit. {why}"
        )
    return image


def check_channels(channels: int) -> None:
    if channels not in PIL_MODES:
        raise UserError(f"`channels` is {channels}; expected 1 (grey), 3 (RGB) or 4 (RGBA)")


def box_text(box: np.ndarray) -> str:
    """(x0, y0, x1, y1) for a message."""
    return f"({', '.join(f'{value:g}' for value in box)})"
