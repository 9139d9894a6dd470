"""Score a network on a loader: every image once, over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from densekd.ops.tiling import Views
from densekd.tasks import Metric, Task
from densekd.types import Batch


@torch.no_grad()
def evaluate(
    network: nn.Module,
    loader: Iterable[Batch],
    task: Task,
    *,
    device: torch.device | str = "cpu",
    views: Views | None = None,
    amp: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    metric: Metric | None = None,
) -> dict[str, Any]:
    """The task's metric over the loader.

    The network is put in eval mode and left as it was found. Images without labels are predicted but count nothing.

    Args:
        network: tapped network (`Taps`), on `device`.
        progress: called with the number of images done.
        metric: counts into this one, which then holds more than its scores (a detector's results); None makes one.

    Returns:
        what the task's metric computes, e.g. ``{"miou": 0.61, "pixel_accuracy": 0.9, "iou": {...}}``.
    """
    place = torch.device(device)
    views = views or Views()
    metric = metric or task.metric(device=place)
    was_training = network.training
    network.eval()
    try:
        for batch in loader:
            batch = batch.to(place)
            with torch.autocast(place.type, dtype=amp, enabled=amp is not None):
                prediction = task.predict(network, batch, views)
            metric.update(prediction, batch)
            if progress is not None:
                progress(len(batch))
    finally:
        network.train(was_training)
    return metric.compute()
