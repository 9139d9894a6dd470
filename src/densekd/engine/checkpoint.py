"""Atomic checkpoints: a kill at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from densekd.errors import UserError
from densekd.ops.files import open_atomic


def save_atomic(value: dict[str, Any], path: Path) -> None:
    """torch.save the whole value or leave the old file."""
    with open_atomic(path, "wb") as file:
        torch.save(value, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_atomic` wrote, onto the CPU, without unpickling anything but tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}). "
            "Start a new run with another --name, or restore the file."
        ) from error
