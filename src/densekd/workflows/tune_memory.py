"""What `tune` chose for a recipe's step, remembered by recipe, machine and versions."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densekd.config.load import to_tree
from densekd.config.names import STEP_FORMS
from densekd.config.schema import Config
from densekd.config.tree import flatten
from densekd.engine.folder import describe_environment
from densekd.errors import UserError
from densekd.ops.files import cache_folder, read_object, write_text
from densekd.profiling.machine import processor

# Sections and settings on which the time of a step does not depend, or which name files.
_OF_NO_MATTER = ("optim.", "evaluate.", "seed", "note", "data.root", "data.workers", "data.cache")


# What may compute the teacher: without its package, a choice of it is of no use.
RUNTIMES = ("onnxruntime", "openvino")


def _key(config: Config, device: torch.device) -> str:
    """Of the recipe's step, the machine and the versions."""
    settings = {
        k: v
        for k, v in flatten(to_tree(config)).items()
        if not k.startswith(_OF_NO_MATTER) and not k.endswith((".weights", ".allow_untrained"))
        and (not k.startswith("train.") or k in (*STEP_FORMS, "train.accumulate", "train.recompute_norms"))
    }  # fmt: skip
    environment = describe_environment()
    versions = {k: environment["versions"].get(k) for k in ("torch", "densekd", *RUNTIMES)}
    where = (str(device.type), processor(), environment["cuda_device"], environment["threads"])
    text = json.dumps([settings, where, versions], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def memory_of(config: Config, device: torch.device) -> Path:
    """The file in which the choice for this recipe, machine and versions is remembered."""
    return cache_folder("tune") / f"{_key(config, device)}.json"


def remembered(config: Config, device: torch.device) -> dict[str, Any] | None:
    """What `tune` found for this recipe, machine and versions; None where it has not looked."""
    path = memory_of(config, device)
    if not path.is_file():
        return None
    with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        found = read_object(path)
        settings = {k: v for k, v in found["settings"].items() if k in STEP_FORMS}
        found["ratio"]["median"], found["ratio"]["interval"][1]
        return {**found, "settings": settings}
    return None  # a damaged note costs a measurement, not a run


def remember(config: Config, device: torch.device, result: Mapping[str, Any]) -> None:
    """Keep what `tune` found."""
    with contextlib.suppress(OSError):  # a machine without a home is tuned again
        write_text(memory_of(config, device), json.dumps(result, indent=2) + "\n")
