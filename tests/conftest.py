"""What several tests share: tiny recipes on small built-in data, and the command line in-process."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from densekd.data import SceneSet

torch.set_num_threads(1)

SHARED = Path(
    os.environ.get("DENSEKD_SHARED", Path(__file__).resolve().parents[1] / ".." / "shared")
)


def pytest_collection_finish() -> None:
    """Keep the collector away from all that the imports made: measuring code collects garbage before every round."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def rendered_once() -> Iterator[None]:
    """A small scene is rendered once a process, since it depends on its arguments alone; later reads get a copy."""
    module = sys.modules[SceneSet.__module__]
    render = module.render_scene
    kept = lru_cache(maxsize=1024)(render)

    def copied(seed: int, index: int, *, height: int, width: int):
        if height * width > 96 * 192:
            return render(seed, index, height=height, width=width)
        return deepcopy(kept(seed, index, height=height, width=width))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "render_scene", copied)
        yield


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
