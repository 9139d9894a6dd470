"""Tileable noise, made once from a fixed seed; scenes look it up at offsets of their own.

Every texture is a pure function of its arguments, so a scene never depends on what was drawn
before it in the same process.
"""

from functools import cache

import cv2
import numpy as np

TILE = 256  # side of every tile in texels; a power of two, so that wrapping is a bit mask


@cache
def noise_tile(kind: str) -> np.ndarray:
    """(256, 256) float32 about 0, standard deviation 1, wrapping at its borders.

    Kinds: "grain" (fine), "cloud" (1/f), "leaf" (clumps with sharp lights), "stain" (coarse).
    """
    seed, exponent, low = {
        "grain": (1, 0.35, 0.0),
        "cloud": (2, 1.6, 0.0),
        "leaf": (3, 0.9, 8.0),
        "stain": (4, 1.9, 2.0),
    }[kind]
    white = np.random.Generator(np.random.PCG64(seed)).standard_normal((TILE, TILE))
    frequency = np.fft.fftfreq(TILE) * TILE
    radius = np.hypot(frequency[:, None], frequency[None, :])
    gain = np.where(radius > 0, 1.0 / np.maximum(radius, max(low, 1.0)) ** exponent, 0.0)
    field = np.fft.ifft2(np.fft.fft2(white) * gain).real
    if kind == "leaf":
        field = np.sign(field) * np.abs(field) ** 0.7
    field = (field - field.mean()) / field.std()
    # Rounded, so that last-bit differences between FFT builds cannot reach a picture.
    return np.round(field, 3).astype(np.float32)


def look_up(
    kind: str, x: np.ndarray, y: np.ndarray, per_metre: float, offset: tuple[float, float]
) -> np.ndarray:
    """Noise at ground or wall positions x, y (any shape, metres), nearest texel."""
    columns = ((x + offset[0]) * per_metre).astype(np.int32) & (TILE - 1)
    rows = ((y + offset[1]) * per_metre).astype(np.int32) & (TILE - 1)
    return noise_tile(kind).ravel()[(rows << 8) + columns]


def crop(
    kind: str, start: tuple[float, float], texels: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    """A piece of a tile stretched to (height, width) = `size`.

    Args:
        start: where to begin, fractions (0..1) of a tile.
        texels: how many texels (rows, columns) the piece spans; fewer texels look coarser.
        size: (height, width) of the result in pixels.
    """
    rows, columns = (int(min(max(count, 4), TILE)) for count in texels)
    top, left = (int(part * TILE) for part in start)
    tile = noise_tile(kind)
    piece = tile.take(range(top, top + rows), 0, mode="wrap")
    piece = piece.take(range(left, left + columns), 1, mode="wrap")
    shrinks = size[0] < rows or size[1] < columns
    return cv2.resize(
        piece, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def tint(colour: np.ndarray | tuple, noise: np.ndarray, strength: float) -> np.ndarray:
    """Colour (3,) modulated by noise (h, w): (h, w, 3) uint8."""
    channels = [
        cv2.convertScaleAbs(noise, alpha=strength * float(value), beta=float(value))
        for value in colour
    ]
    return cv2.merge(channels)
