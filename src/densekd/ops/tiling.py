"""Whole-image prediction from windows, scales and flips, for any function from images to maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from densekd.ops.resize import resize_map

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
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    overlap: float = 1 / 3,
) -> Tensor:
    """Scores at `size` under test-time augmentation.

    With one scale and no flip the logits themselves come back, bilinearly resized. Otherwise class probabilities are
    averaged (as mmsegmentation does), because logits of several inputs are not on one scale.

    Returns:
        (N, K, *size) float32 logits or probabilities; their argmax is the prediction.
    """
    passes: list[Tensor] = []
    height, width = images.shape[-2:]
    for scale in scales:
        scaled = images
        if scale != 1.0:
            scaled = resize_map(
                images, (max(1, round(height * scale)), max(1, round(width * scale)))
            )
        for flipped in (False, True) if flip else (False,):
            view = scaled.flip(-1) if flipped else scaled
            logits = (
                predict_windows(predict, view, window=window, overlap=overlap)
                if window is not None
                else predict(view).float()
            )
            passes.append(resize_map(logits.flip(-1) if flipped else logits, size))
    if len(passes) == 1:
        return passes[0]
    total = passes[0].softmax(1)
    for logits in passes[1:]:
        total = total + logits.softmax(1)
    return total / len(passes)
