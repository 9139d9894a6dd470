"""The score of an answer that does not depend on the image: what any network must beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from densekd.build.data import build_eval_loader, build_reader
from densekd.build.task import build_task
from densekd.config.schema import Config
from densekd.engine.launch import Process
from densekd.errors import DataError
from densekd.tasks import Task
from densekd.types import Batch, InputSpec

SAMPLES = 200  # training targets the guess is made from, spread evenly over the set


def constant_guess_scores(config: Config) -> dict[str, Any]:
    """The task's scores on the validation split of one answer for all images, taken from the training targets."""
    data = config.data
    train = build_reader(data, data.train_split, training=True)
    val = build_reader(data, data.val_split, training=False)
    task = build_task(config, train)
    here = Process(rank=0, world_size=1, device=torch.device("cpu"))
    channels = config.model.in_channels
    spec = InputSpec(mean=(0.5,) * channels, std=(0.25,) * channels)  # no network sees an image
    batches = build_eval_loader(config, val, spec, here)
    return guess_scores(task, train, batches, skip_bad=data.on_bad_file == "skip")


def guess_scores(
    task: Task,
    train: Any,
    batches: Iterable[Batch],
    *,
    samples: int = SAMPLES,
    device: torch.device | str = "cpu",
    skip_bad: bool = False,
) -> dict[str, Any]:
    """The task's scores on some batches of one answer for all images.

    Args:
        train: the training set, whose targets give the answer.
        samples: how many of them, spread evenly over the set.
        skip_bad: leave out training samples that cannot be read.

    Raises:
        DataError: no training image has a label, or one is bad.
    """
    constant = task.constant_guess(_targets(train, samples, skip_bad=skip_bad))
    metric = task.metric(device)
    for batch in batches:
        metric.update(task.guess(constant, batch), batch)
    return metric.compute()


def _targets(reader: Any, samples: int, *, skip_bad: bool) -> Iterator[tuple[Any, tuple[int, int]]]:
    """(target, (height, width) of its image) of labelled training samples."""
    # Without label files they are known to have none; what is not in files (scenes) has both paths None.
    indices = [
        i
        for i in range(len(reader))
        if not hasattr(reader, "paths") or reader.paths(i)[0] is None or reader.paths(i)[1]
    ]
    if not indices:
        raise DataError("no training image has a label, so there is nothing to guess from")
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(samples, len(indices))).round())
    for index in (indices[i] for i in chosen.astype(int).tolist()):
        try:
            sample = reader.read(index)
        except DataError:
            if skip_bad:
                continue
            raise
        if sample.target is not None:
            yield sample.target, sample.image.shape[:2]
