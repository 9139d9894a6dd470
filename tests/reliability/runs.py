"""The smallest runs that there are, for the attacks on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densekd.config.load import make_config
from densekd.engine import trainer
from densekd.workflows.run import run


def small_tree(**train: Any) -> dict[str, Any]:
    """ESPNet-C alone on tiny scenes: a step takes some hundredths of a second."""
    return {
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "data": {
            "dataset": "scenes",
            "options": {"height": 32, "width": 64},
            "train_options": {"length": 4},
            "val_options": {"length": 1},
            "batch_size": 2,
            "workers": 0,
            "crop": [32, 64],
        },
        "optim": {"name": "adam", "lr": 1e-3},
        "train": {"steps": 4, "log_every": 1, "save_every": 1, **train},
    }


def go(tree: dict, folder: Path, *, distil: bool = False, resume: bool = False) -> int:
    config = make_config(tree, "test")
    return run(config, distil=distil, folder=folder, command="test", resume=resume, device="cpu")


@contextmanager
def dies_after(step: int) -> Iterator[None]:
    """As a kill would: an exception between a save and the step that follows."""
    original = trainer.Training.save

    def die(self: trainer.Training) -> None:
        original(self)
        if self.done == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Training, "save", die)
        try:
            yield
        except KeyboardInterrupt:
            return
    pytest.fail(f"the run never saved step {step}")


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flips(path: Path, count: int, seed: int) -> Iterator[int]:
    """Turn over one of `count` bits, spread over the file by a seed, and back again after each."""
    whole = path.read_bytes()
    draw = np.random.default_rng(seed)
    for bit in draw.integers(0, 8 * len(whole), count).tolist():
        flip(path, bit)
        yield bit
        path.write_bytes(whole)
