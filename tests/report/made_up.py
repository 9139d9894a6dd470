"""Run folders written by hand: what a report reads, without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ENVIRONMENT = {"python": "3.11.7", "threads": 1, "cuda": None, "versions": {"torch": "2.14.1"}}


def tree(*, teacher: bool = False, seed: int = 0, **more: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model": {"name": "espnet_c", "options": {"p": 1}},
        "data": {"dataset": "scenes", "root": None, "val_split": "val", "batch_size": 4},
        "task": {"name": "segmentation"},
        "teacher": {"name": "espnet", "options": {}, "weights": None} if teacher else None,
        "distill": {"pixel_wise": {"weight": 6}, "pair_wise": {"weight": 3}} if teacher else {},
        "train": {"steps": 40, "accumulate": 1, "log_every": 10},
        "seed": seed,
        "note": "",
    }
    return {**settings, **more}


def write_run(
    path: Path,
    settings: dict[str, Any],
    *,
    miou: float | None = 0.5,
    iou: dict[str, float | None] | None = None,
    logged: int = 4,
) -> Path:
    """A run of 40 steps with `logged` lines; without a result where `miou` is None."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (path / "command.txt").write_text(f"densekd distill my.yaml --name {path.name}\n")
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    rows = [
        {"step": 10 * i, "task/ce": 2.0 / i, "loss": 3.0 / i, "lr": 0.01, "images_per_s": 8.0}
        for i in range(1, logged + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if miou is not None:
        scores = {"miou": miou, "pixel_accuracy": 0.8, "iou": iou or {"road": miou, "sky": None}}
        result = {
            "step": 40,
            "scores": scores,
            "parameters": 400_000,
            "macs": 10**8,
            "macs_size": [64, 128],
            "seconds": 90.0,
        }
        (path / "result.json").write_text(json.dumps(result))
    return path
