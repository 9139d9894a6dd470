"""The score of an answer that does not depend on the image: what any network must beat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from densekd.build.data import build_eval_loader, build_reader
from densekd.build.task import build_task
from densekd.config.schema import Config
from densekd.engine.launch import Process
from densekd.errors import DataError
from densekd.types import InputSpec

SAMPLES = 200  # training targets the guess is made from, spread evenly over the set


def constant_guess_scores(config: Config) -> dict[str, Any]:
    """The task's scores on the validation split of one answer for all images, taken from the training targets."""
    data = config.data
    train = build_reader(data, data.train_split, training=True)
    val = build_reader(data, data.val_split, training=False)
    task = build_task(config, train)
    constant = task.constant_guess(_targets(train, skip_bad=data.on_bad_file == "skip"))
    here = Process(rank=0, world_size=1, device=torch.device("cpu"))
    metric = task.metric()
    channels = config.model.in_channels
    spec = InputSpec(mean=(0.5,) * channels, std=(0.25,) * channels)  # no network sees an image
    for batch in build_eval_loader(config, val, spec, here):
        metric.update(task.guess(constant, batch), batch)
    return metric.compute()


def _targets(reader: Any, *, skip_bad: bool) -> Iterator[tuple[Any, tuple[int, int]]]:
    """(target, (height, width) of its image) of labelled training samples."""
    # Without label files they are known to have none; what is not in files (scenes) has both paths None.
    indices = [
        i
        for i in range(len(reader))
        if not hasattr(reader, "paths") or reader.paths(i)[0] is None or reader.paths(i)[1]
    ]
    if not indices:
        raise DataError("no training image has a label, so there is nothing to guess from")
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(SAMPLES, len(indices))).round())
    for index in (indices[i] for i in chosen.astype(int).tolist()):
        try:
            sample = reader.read(index)
        except DataError:
            if skip_bad:
                continue
            raise
        if sample.target is not None:
            yield sample.target, sample.image.shape[:2]
