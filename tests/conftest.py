"""What several tests share: tiny recipes on small built-in data, and the command line in-process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(
    os.environ.get("DENSEKD_SHARED", Path(__file__).resolve().parents[1] / ".." / "shared")
)


@pytest.fixture
def shared() -> Path:
    """The folder of real data and checkpoints; the test is skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED} (set DENSEKD_SHARED)")
    return SHARED


@pytest.fixture
def tiny_tree() -> dict:
    """A recipe that trains in a second or two: ESPNet-C from ESPNet on tiny scenes, every term."""
    return {
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "teacher": {
            "name": "espnet",
            "options": {"p": 1, "q": 1},
            "allow_untrained": True,
        },
        "data": {
            "dataset": "scenes",
            "options": {"height": 64, "width": 128},
            "train_options": {"length": 6},
            "val_options": {"length": 3},
            "batch_size": 2,
            "workers": 0,
            "crop": [64, 128],
            "scale": [0.8, 1.2],
        },
        "distill": {
            "pixel_wise": {"weight": 10},
            "pair_wise": {"weight": 10},
            "holistic": {"weight": 0.1, "channels": 8},
        },
        "optim": {"name": "sgd", "lr": 0.01},
        "train": {"steps": 4, "log_every": 1, "save_every": 2},
    }
