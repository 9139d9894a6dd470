"""What kinds of truth with a value at every pixel have in common: arrays (H, W) or (H, W, C) that are never mixed."""

from __future__ import annotations

import cv2
import numpy as np

_MIRRORED = (np.uint8, np.int16, np.float32)  # the types that every OpenCV can flip


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to (height, width); each pixel takes the nearest value."""
    # INTER_NEAREST takes a pixel's corner for its centre and shifts the values against the image; the exact form
    # agrees with the image's bilinear grid.
    resized = cv2.resize(array, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.reshape(*size, *array.shape[2:])


def mirrored(array: np.ndarray) -> np.ndarray:
    """Left and right exchanged, as an array of its own."""
    if array.dtype not in _MIRRORED:
        return np.ascontiguousarray(array[:, ::-1])
    # NumPy's copy of three channels backwards takes twenty times as long.
    return cv2.flip(array, 1).reshape(array.shape)


def padded(array: np.ndarray, size: tuple[int, int], value: float) -> np.ndarray:
    """Padded with `value` at the bottom and on the right, to (height, width), as a contiguous array."""
    height, width = array.shape[:2]
    if (height, width) == tuple(size):
        return np.ascontiguousarray(array)
    result = np.full((*size, *array.shape[2:]), value, dtype=array.dtype)
    result[:height, :width] = array
    return result
