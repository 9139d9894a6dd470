"""Score a network on a loader: every image once, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from densekd.ops.tiling import predict_dense
from densekd.tasks import Segmentation
from densekd.types import Batch


@dataclass(frozen=True)
class Views:
    """How an image is looked at when it is scored.

    Attributes:
        scales: factors on the image's size; several are averaged.
        flip: average with the mirrored image.
        window: (height, width) of a sliding window, or None for the whole image.
        overlap: of neighbouring windows, as a fraction.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    overlap: float = 1 / 3


def predict(network: nn.Module, images: Tensor, size: tuple[int, int], views: Views) -> Tensor:
    """(N, C, H, W) RGB in [0, 1] -> (N, K, *size) scores; `network` is tapped."""
    return predict_dense(
        lambda x: network(x).prediction,
        images,
        size,
        scales=views.scales,
        flip=views.flip,
        window=views.window,
        overlap=views.overlap,
    )


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loader: Iterable[Batch],
    task: Segmentation,
    *,
    device: torch.device | str = "cpu",
    views: Views | None = None,
    amp: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """The task's metric over the loader.

    The network is put in eval mode and left as it was found. Images without labels are predicted but count nothing.

    Args:
        network: tapped network (`Taps`), on `device`.
        progress: called with the number of images done.

    Returns:
        what the task's metric computes, e.g. ``{"miou": 0.61, "pixel_accuracy": 0.9, "iou": {...}}``.
    """
    place = torch.device(device)
    views = views or Views()
    metric = task.metric(device=place)
    was_training = network.training
    network.eval()
    try:
        for batch in loader:
            batch = batch.to(place)
            with torch.autocast(place.type, dtype=amp, enabled=amp is not None):
                scores = predict(network, batch.images, tuple(batch.targets.shape[-2:]), views)
            metric.update(task.decode(scores), batch)
            if progress is not None:
                progress(len(batch))
    finally:
        network.train(was_training)
    return metric.compute()
