"""Whole-image prediction from windows, scales and flips, for any function from images to maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from densekd.ops.resize import resize_map


@dataclass(frozen=True)
class Views:
    """How an image is looked at when it is scored.

    Attributes:
        scales: factors on the image's size; several are averaged.
        short_side: scale 1 means that the shorter side has this many pixels; None means the image's own size.
        long_side: but the longer side has at most so many; None sets no limit.
        flip: average with the mirrored image.
        window: (height, width) of a sliding window, or None for the whole image.
        overlap: of neighbouring windows, as a fraction.
    """

    scales: Sequence[float] = (1.0,)
    short_side: int | None = None
    long_side: int | None = None
    flip: bool = False
    window: tuple[int, int] | None = None
    overlap: float = 1 / 3

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
AT_ONCE = 8  # windows a forward pass takes, so that memory does not grow with the image


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
        # Autocast gives half precision, too coarse for sums and for the argmax of near classes.
        logits = resize_map(predict(tiles).float(), (tall, wide))
        if first == 0:
            total = logits.new_zeros((n, logits.shape[1], height, width))
            count = logits.new_zeros((1, 1, height, width))
        for (top, left), part in zip(group, logits.split(n), strict=True):
            total[..., top : top + tall, left : left + wide] += part
            count[..., top : top + tall, left : left + wide] += 1
    return total / count


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
        average: maps -> what may be averaged; None takes the softmax over channels.

    Returns:
        (N, K, *size) float32 maps, or the mean of `average` over the views.
    """
    views = views or Views()
    average = average or (lambda logits: logits.softmax(1))
    passes: list[Tensor] = []
    height, width = images.shape[-2:]
    for scaled_size in views.sizes(height, width):
        scaled = images if scaled_size == (height, width) else resize_map(images, scaled_size)
        for flipped in (False, True) if views.flip else (False,):
            view = scaled.flip(-1) if flipped else scaled
            maps = (
                predict_windows(predict, view, window=views.window, overlap=views.overlap)
                if views.window is not None
                else predict(view).float()
            )
            passes.append(resize_map(maps.flip(-1) if flipped else maps, size))
    if len(passes) == 1:
        return passes[0]
    total = average(passes[0])
    for maps in passes[1:]:
        total = total + average(maps)
    return total / len(passes)
