"""The score of an answer that looks at no image: what any network must beat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from densekd.config import build
from densekd.config.schema import Config
from densekd.engine.launch import Process
from densekd.types import InputSpec

SAMPLES = 200  # training targets the guess is made from, spread evenly over the set


def constant_guess_scores(config: Config) -> dict[str, Any]:
    """The task's scores on the validation split of one answer for all images, taken from the training targets."""
    data = config.data
    train = build.build_reader(data, data.train_split, training=True)
    val = build.build_reader(data, data.val_split, training=False)
    task = build.build_task(config, train)
    constant = task.constant_guess(_targets(train))
    here = Process(rank=0, world_size=1, device=torch.device("cpu"))
    metric = task.metric()
    for batch in build.build_eval_loader(config, val, InputSpec(), here):
        metric.update(task.guess(constant, batch), batch)
    return metric.compute()


def _targets(reader: Any) -> Iterator[tuple[Any, tuple[int, int]]]:
    """(target, (height, width) of its image) of labelled training samples."""
    chosen = np.unique(np.linspace(0, len(reader) - 1, min(SAMPLES, len(reader))).round())
    for index in chosen.astype(int).tolist():
        sample = reader.read(index)
        if sample.target is not None:
            yield sample.target, sample.image.shape[:2]
