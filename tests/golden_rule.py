"""The rules that the golden files in tests/golden/ are made by (see the README.md there)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def load_golden(name: str) -> dict[str, Tensor]:
    """The tensors of one golden file; ``"seed_losses"`` reads tests/golden/seed_losses.safetensors."""
    return load_file(GOLDEN / f"{name.removesuffix('.safetensors')}.safetensors")


def golden_shapes(network: str) -> dict[str, list[int]]:
    """Key -> shape of one of the authors' networks, as their checkpoint files contain it."""
    return json.loads((GOLDEN / "seed_state_dict_shapes.json").read_text())[network]


def golden_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Weights that need no random generator: a function of the sorted keys and their shapes."""
    state = {}
    for i, key in enumerate(sorted(shapes)):
        shape = tuple(shapes[key])
        if key.endswith("num_batches_tracked"):  # counts in i, but is not filled
            state[key] = torch.zeros(shape, dtype=torch.long)
            continue
        numel = torch.Size(shape).numel()
        t = torch.sin(torch.arange(numel, dtype=torch.float64) * 12.9898 + 78.233 * i) * 43758.5453
        w = 2 * (t - t.floor()) - 1
        if key.endswith("running_var"):
            w = 1 + 0.1 * w
        elif key.endswith(("running_mean", "bias")):
            w = 0.1 * w
        elif len(shape) == 1:
            w = 1 + 0.1 * w
        else:
            w = w * (2 / (numel / shape[0])) ** 0.5
        state[key] = w.view(shape).float()
    return state
