"""Augmentation on uint8: scale, crop, flip and colour of one sample, with one resize of the crop alone.

The field scales the whole image and then cuts. Here the crop's window is computed in the source first,
and only that is resized: the same images in a fraction of the time (for a 512×512 crop of a 2048×1024
image at scale 2, a thirty-second of the pixels). What is drawn (`Choices`) is apart from what is done with it, so
that `densekd.data.device` can do the same on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample
from densekd.errors import UserError
from densekd.targets import ClassMap, Window, kind_of
from densekd.targets.arrays import mirrored

CROP_TRIES = 10  # mmsegmentation's number
Augmented = tuple[np.ndarray, Any, np.ndarray]


@dataclass(frozen=True)
class Choices(Window):
    """The random choices for one sample.

    Attributes:
        jitter: factors of brightness, contrast and saturation; None leaves the colours alone.
    """

    jitter: tuple[float, float, float] | None


@dataclass(frozen=True)
class Augment:
    """Random scale, crop, flip and colour of a sample with any kind of truth.

    The target's kind knows how it follows its image (`ClassMap`, `BoxTarget`, `DepthTarget`, or one of yours). Depth
    takes `short_side` for a change of resolution and the random scale for coming nearer (`DepthTarget.resize`).

    Args:
        crop: (height, width) of what comes out; None keeps the whole (scaled) image.
        scale: (low, high), between which a scale is drawn evenly; or one number.
        scales: where given, one of these is drawn instead.
        short_side: scale 1 means that the shorter side has this many pixels; None means the image's own
            size (for sets whose images differ in size, such as ADE20K).
        long_side: but never more than this many for the longer side at scale 1 (detection's "800, at most 1333").
        hflip: probability of mirroring left and right.
        color_jitter: (brightness, contrast, saturation), each the largest change of a factor of 1; or one
            number for all three.
        fill: colour of the padding, uint8 RGB (`InputSpec.fill`), or one number.
        ignore_index: the padding's label.
        cat_max_ratio: draw another window (up to 10 times) while one class has at least this share of
            the crop's labelled pixels, or while there is only one class. For class maps alone.

    Raises:
        UserError: a setting outside its range.
    """

    crop: tuple[int, int] | None = None
    scale: float | Sequence[float] = 1.0
    scales: Sequence[float] | None = None
    short_side: int | None = None
    long_side: int | None = None
    hflip: float = 0.5
    color_jitter: float | Sequence[float] = 0.0
    fill: int | Sequence[int] = 0
    ignore_index: int = IGNORE_INDEX
    cat_max_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 1):
            raise UserError(f"crop is {self.crop}; expected (height, width), both at least 1")
        scale = _numbers(self.scale)
        if len(scale) not in (1, 2) or not 0 < scale[0] <= scale[-1]:
            raise UserError(f"scale is {self.scale}; expected (low, high) or one number, above 0")
        if self.scales is not None and (len(self.scales) == 0 or min(self.scales) <= 0):
            raise UserError(f"scales is {self.scales}; expected a list of numbers above 0")
        if self.short_side is not None and self.short_side < 1:
            raise UserError(f"short_side is {self.short_side}; expected at least 1 pixel, or none")
        if self.long_side is not None and self.long_side < 1:
            raise UserError(f"long_side is {self.long_side}; expected at least 1 pixel, or none")
        if not 0 <= self.hflip <= 1:
            raise UserError(f"hflip is {self.hflip}; expected a probability from 0 to 1")
        jitter = _numbers(self.color_jitter)
        if len(jitter) not in (1, 3) or min(jitter) < 0:
            raise UserError(
                f"color_jitter is {self.color_jitter}; expected one number or (brightness, contrast, "
                "saturation), none below 0"
            )
        if self.cat_max_ratio is not None and not 0 < self.cat_max_ratio <= 1:
            raise UserError(f"cat_max_ratio is {self.cat_max_ratio}; expected above 0, at most 1")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Augmented:
        """Returns image (h, w, C) uint8, target (h, w), and inside (h, w) bool: False in the padding.

        The target has the form it came in. A sample without one is taken for an unlabelled class map, all
        ignore_index (loaders put in the empty target of their reader's kind). With the same sample and a generator
        in the same state, the same comes out.
        """
        image, target = sample.image, sample.target
        if target is None:
            target = ClassMap.empty(image.shape[:2], self.ignore_index)
        sample = replace(sample, target=target)
        return self.apply(sample, self.draw(image.shape[:2], target, rng))

    def draw(self, size: tuple[int, int], target: Any, rng: np.random.Generator) -> Choices:
        """All random choices for an image of (height, width); `target` is needed for `cat_max_ratio` alone."""
        rows, columns, out, zoom = self._window(size, target, rng)
        flip = bool(rng.random() < self.hflip)
        limits = _numbers(self.color_jitter)
        jitter = None
        if any(limits):
            limits = limits * 3 if len(limits) == 1 else limits
            low_high = ((max(0.0, 1 - x), 1 + x) for x in limits)
            brightness, contrast, saturation = (float(rng.uniform(*pair)) for pair in low_high)
            jitter = (brightness, contrast, saturation)
        return Choices(rows, columns, out, zoom, flip, jitter)

    def apply(self, sample: Sample, choices: Choices) -> Augmented:
        """The sample, which has a target, as it was drawn; its arrays are read in the window alone."""
        taken, size = choices.taken, choices.size
        # A view: OpenCV reads rows where they lie, be it in a memory map.
        image = sample.image[choices.rows, choices.columns]
        target, kind = sample.target, kind_of(sample.target)
        if (
            taken != sample.image.shape[:2]
        ):  # else nothing is cut off: boxes too small to be cut stay
            target = kind.crop(target, choices.rows.start, choices.columns.start, *taken)
        target = kind.resize(target, taken, size, choices.zoom)
        if taken != size:
            image = _resize(image, size)
        if choices.flip:
            image = mirrored(image)
            target = kind.flip(target, size[1])
        if choices.jitter is not None:
            image = _jitter(image, *choices.jitter)
        return pad(image, target, self.crop or size, self.fill, self.ignore_index)

    def _window(
        self, size: tuple[int, int], target: Any, rng: np.random.Generator
    ) -> tuple[slice, slice, tuple[int, int], float]:
        """The source window, in whole pixels, the size that it is resized to, and the random scale."""
        if self.scales is not None:
            zoom = float(self.scales[int(rng.integers(len(self.scales)))])
        else:
            low_high = _numbers(self.scale)
            zoom = rng.uniform(low_high[0], low_high[-1])
        scale = zoom * self._unit(size)
        scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        if self.crop is None:
            return slice(0, size[0]), slice(0, size[1]), scaled, zoom
        out = (min(scaled[0], self.crop[0]), min(scaled[1], self.crop[1]))
        # A side that fits into the crop is taken whole; of a longer one, as much as fills the crop.
        taken = tuple(
            side if long <= crop else min(side, max(1, round(crop / scale)))
            for side, long, crop in zip(size, scaled, self.crop, strict=True)
        )
        mixing, kind = self.cat_max_ratio is not None, kind_of(target)
        if mixing and not hasattr(kind, "is_mixed"):
            raise UserError(
                "cat_max_ratio compares classes of pixels; leave it out for other targets"
            )
        for _ in range(CROP_TRIES if mixing else 1):
            top, left = (int(rng.integers(0, n - m + 1)) for n, m in zip(size, taken, strict=True))
            rows, columns = slice(top, top + taken[0]), slice(left, left + taken[1])
            if self.cat_max_ratio is None:
                break
            seen = kind.crop(target, top, left, *taken)
            if kind.is_mixed(seen, self.cat_max_ratio, self.ignore_index):
                break
        return rows, columns, out, zoom

    def _unit(self, size: tuple[int, int]) -> float:
        """The factor on an image's size that scale 1 means."""
        unit = 1.0 if self.short_side is None else self.short_side / min(size)
        return unit if self.long_side is None else min(unit, self.long_side / max(size))


def augment(sample: Sample, rng: np.random.Generator, **settings: Any) -> Augmented:
    """`Augment(**settings)` on one sample."""
    return Augment(**settings)(sample, rng)


def whole(sample: Sample, ignore_index: int = IGNORE_INDEX) -> Augmented:
    """The sample as it is, in the form of an augmented one: what evaluation sees.

    As for `Augment`, a sample without a target is taken for an unlabelled class map.
    """
    size = sample.image.shape[:2]
    target = ClassMap.empty(size, ignore_index) if sample.target is None else sample.target
    return sample.image, target, np.ones(size, dtype=bool)


def pad(
    image: np.ndarray,
    target: Any,
    size: tuple[int, int],
    fill: int | Sequence[int],
    ignore_index: int,
    inside: np.ndarray | None = None,
) -> Augmented:
    """Pad at the bottom and on the right, as the paper's authors do.

    Args:
        image: (h, w, C) uint8.
        target: of any kind; a class map is padded with `ignore_index`.
        inside: (h, w) bool, all True where None.
        size: (H, W), at least (h, w).

    Returns:
        image (H, W, C), target (H, W), inside (H, W): contiguous arrays.
    """
    h, w, channels = image.shape
    if inside is None:
        inside = np.ones((h, w), dtype=bool)
    if (h, w) == tuple(size):
        return np.ascontiguousarray(image), _padded(target, size, ignore_index), inside
    colour = _numbers(fill)
    if len(colour) not in (1, channels):
        raise UserError(f"fill has {len(colour)} values and the images have {channels} channels")
    padded = np.empty((*size, channels), dtype=image.dtype)
    padded[:] = colour
    padded[:h, :w] = image
    mask = np.zeros(size, dtype=bool)
    mask[:h, :w] = inside
    return padded, _padded(target, size, ignore_index), mask


def _padded(target: Any, size: tuple[int, int], ignore_index: int) -> Any:
    return kind_of(target).pad(target, size, ignore_index)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, *image.shape[2:])


def _jitter(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """(H, W, C) uint8: brightness, then contrast about the mean, then saturation (of three channels)."""
    # Brightness and contrast are one table; contrast turns about the mean after brightness.
    image = np.ascontiguousarray(image)
    values = np.clip(np.arange(256) * brightness, 0, 255)
    counts = cv2.calcHist([image.reshape(-1, 1)], [0], None, [256], [0, 256]).ravel()
    mean = float(counts.astype(np.float64) @ values) / image.size
    table = np.clip((values - mean) * contrast + mean + 0.5, 0, 255).astype(np.uint8)
    image = cv2.LUT(image, table).reshape(image.shape)
    if saturation != 1 and image.shape[2] == 3:  # grey and four-band images have no saturation
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
    return image


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return (value,) if isinstance(value, (int, float)) else tuple(value)
