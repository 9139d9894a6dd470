"""Pictures of what networks predict on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from densekd.config import build
from densekd.config.schema import Config, Model
from densekd.engine.evaluate import predict
from densekd.models.taps import Taps
from densekd.report.pictures import save_grid


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
    reader = build.build_reader(config.data, config.data.val_split, training=False)
    task = build.build_task(config, reader)
    views = build.build_views(config.evaluate)
    columns = ["image", "truth", *(title for title, _, _ in networks)]
    built = []
    for _, model, weights in networks:
        network, spec = build.build_network(
            replace(model, weights=str(weights)), task.classes, "model"
        )
        built.append(Taps(network, {}, spec).eval())
    rows: list[list[np.ndarray]] = []
    for index in indices:
        sample = reader.read(index)
        images = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 255
        row = [sample.image[..., :3], task.colour(sample.target)]
        for tapped in built:
            labels = task.decode(predict(tapped, images, sample.target.shape, views))[0].numpy()
            row.append(task.colour(labels))
        rows.append(row)
    save_grid(path, columns, rows, width=width)
