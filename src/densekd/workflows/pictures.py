"""Pictures of what networks predict on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from densekd.build.data import build_eval_loader, build_reader, build_views
from densekd.build.networks import build_network
from densekd.build.task import build_task
from densekd.config.schema import Config, Model
from densekd.engine.launch import Process
from densekd.models.taps import Taps
from densekd.report.pictures import save_grid
from densekd.types import InputSpec


@torch.no_grad()
def save_comparison(
    config: Config,
    networks: Sequence[tuple[str, Model, Path]],
    path: Path,
    *,
    indices: Sequence[int],
    width: int = 256,
) -> None:
    """Image, truth, and each network's prediction on `indices` of the validation split.

    Args:
        networks: (column title, model, weights file).
    """
    reader = build_reader(config.data, config.data.val_split, training=False)
    task = build_task(config, reader)
    views = build_views(config.evaluate)
    columns = ["image", "truth", *(title for title, _, _ in networks)]
    built = []
    for _, model, weights in networks:
        network, spec = build_network(replace(model, weights=str(weights)), task, "model")
        built.append(Taps(network, {}, spec).eval())
    rows: list[list[np.ndarray]] = []
    whole = replace(config, evaluate=replace(config.evaluate, batch_size=1))
    spec = InputSpec(mean=(0.5,) * reader.channels, std=(0.25,) * reader.channels)  # pads nothing
    here = Process(rank=0, world_size=1, device=torch.device("cpu"))
    loader = build_eval_loader(whole, reader, spec, here, limit=max(indices, default=-1) + 1)
    for index, batch in enumerate(loader):
        if index not in indices:
            continue
        sample = reader.read(index)
        image = sample.image[..., :3]
        row = [image, task.picture(image, sample.target)]
        for tapped in built:
            # One image's part of a batch of one.
            answer = task.predict(tapped, batch.to(here.device), views)[0]
            row.append(task.picture(image, answer))
        rows.append(row)
    save_grid(path, columns, rows, width=width)
