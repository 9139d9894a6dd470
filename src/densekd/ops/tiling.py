"""Whole-image prediction from windows, scales and flips, for any function from images to maps.

Maps are resized and averaged a few rows at a time: only the sums are of full size. That changes no bit, except the
last one of a softmax at ends of rows whose length is no multiple of the processor's vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from densekd.ops._bilinear import bands
from densekd.ops.argmax import argmax_map
from densekd.ops.resize import resize_map


@dataclass(frozen=True)
class Views:
    """The views of an image whose predictions are averaged when it is scored.

    Attributes:
        scales: factors on the image's size; several are averaged.
        short_side: the pixels of the shorter side at scale 1; None means the image's own size.
        long_side: the most pixels of the longer side at scale 1; None sets no limit.
        flip: whether the mirrored image is averaged too.
        window: (height, width) of a sliding window, or None for the whole image.
        overlap: the share of a window that its neighbour covers too.
    """

    scales: Sequence[float] = (1.0,)
    short_side: int | None = None
    long_side: int | None = None
    flip: bool = False
    window: tuple[int, int] | None = None
    overlap: float = 1 / 3

    @property
    def count(self) -> int:
        """How many predictions are averaged."""
        return len(self.scales) * (2 if self.flip else 1)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) that an image of this size is resized to, one a scale."""
        unit = 1.0 if self.short_side is None else self.short_side / min(height, width)
        if self.long_side is not None:
            unit = min(unit, self.long_side / max(height, width))
        return [
            (max(1, round(height * unit * scale)), max(1, round(width * unit * scale)))
            for scale in self.scales
        ]


Predict = Callable[[Tensor], Tensor]  # (N, C, H, W) images -> (N, K, h, w) logits
AT_ONCE = 8  # the windows of one forward pass, so that memory does not grow with the image
PIXELS_AT_ONCE = 2**21  # the most pixels for which images and mirror images share a forward pass


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Left edges of the windows that cover `length`; the last one ends at the border."""
    if window >= length:
        return [0]
    stride = max(1, math.ceil(window * (1 - overlap)))
    count = math.ceil((length - window) / stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def predict_windows(
    predict: Predict, images: Tensor, *, window: tuple[int, int], overlap: float = 1 / 3
) -> Tensor:
    """Logits at image size, averaged where windows overlap (the authors' sliding evaluation).

    An image smaller than the window is predicted whole. Windows go through the network up to `AT_ONCE` together, one
    of each image at least.

    Returns:
        (N, K, H, W) float32 logits.
    """
    height, width = images.shape[-2:]
    tall, wide = min(window[0], height), min(window[1], width)
    corners = [
        (top, left)
        for top in window_starts(height, tall, overlap)
        for left in window_starts(width, wide, overlap)
    ]
    n = images.shape[0]
    total = count = images.new_zeros((), dtype=torch.float32)
    each = max(1, AT_ONCE // n)
    for first in range(0, len(corners), each):
        group = corners[first : first + each]
        tiles = torch.cat([images[..., t : t + tall, left : left + wide] for t, left in group])
        logits = predict(tiles)
        if first == 0:
            total = total.new_zeros((n, logits.shape[1], height, width))
            count = total.new_zeros((1, 1, height, width))
        for (top, left), part in zip(group, logits.split(n), strict=True):
            # Autocast gives half precision, too coarse for sums and for the argmax of near classes.
            for rows, band in bands(part.float(), (tall, wide)):
                total[..., top + rows.start : top + rows.stop, left : left + wide] += band
            count[..., top : top + tall, left : left + wide] += 1
    return total.div_(count)


def predict_dense(
    predict: Predict,
    images: Tensor,
    size: tuple[int, int],
    views: Views | None = None,
    *,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Scores at `size` under test-time augmentation.

    With one scale and no flip the maps themselves come back, bilinearly resized. Otherwise `average` of each is
    averaged: by default class probabilities (as mmsegmentation does), because logits of several inputs are not on one
    scale.

    Args:
        predict: images -> maps.
        images: (N, C, H, W).
        views: scales, flip and window.
        average: maps -> what may be averaged, each pixel for itself (it is given a few rows at a time); None takes
            the softmax over channels.

    Returns:
        (N, K, *size) float32 maps, or the mean of `average` over the views.
    """
    views = views or Views()
    average = average or (lambda logits: logits.softmax(1))
    passes = _passes(predict, images, views)
    if views.count == 1:
        return resize_map(next(passes), size)
    total: Tensor | None = None
    for i, maps in enumerate(passes):
        for rows, band in bands(maps, size):
            part = average(band)
            if total is None:
                total = part.new_empty((*part.shape[:2], *size))
            if i == 0:
                total[:, :, rows] = part
            else:
                total[:, :, rows] += part
    assert total is not None
    return total.div_(views.count)


def predict_classes(
    predict: Predict, images: Tensor, size: tuple[int, int], views: Views | None = None
) -> Tensor:
    """The argmax over channels of `predict_dense`: (N, *size) uint8, int16 above 255 classes.

    With one view the upsampled scores are never made (`densekd.ops.argmax.argmax_map`).
    """
    views = views or Views()
    if views.count == 1:
        return argmax_map(next(_passes(predict, images, views)), size)
    return argmax_map(predict_dense(predict, images, size, views), size)


def _passes(predict: Predict, images: Tensor, views: Views) -> Iterator[Tensor]:
    """Float32 maps of each view as the network gives them, those of mirrored images mirrored back.

    Small images and their mirror images share one forward pass.
    """

    def maps_of(seen: Tensor) -> Tensor:
        if views.window is not None:
            return predict_windows(predict, seen, window=views.window, overlap=views.overlap)
        return predict(seen).float()

    height, width = images.shape[-2:]
    for scaled_size in views.sizes(height, width):
        scaled = images if scaled_size == (height, width) else resize_map(images, scaled_size)
        pixels = 2 * scaled.shape[0] * scaled.shape[2] * scaled.shape[3]
        if views.flip and views.window is None and pixels <= PIXELS_AT_ONCE:
            straight, mirrored = maps_of(torch.cat([scaled, scaled.flip(-1)])).chunk(2)
            yield straight
            yield mirrored.flip(-1)
            continue
        yield maps_of(scaled)
        if views.flip:
            yield maps_of(scaled.flip(-1)).flip(-1)
