"""A library that may not be installed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import nn

from densekd.errors import UserError
from densekd.types import InputSpec


def package(module: str, name: str, extra: str) -> ModuleType:
    """Import `module`; where it is missing, the error names the package and the extra of densekd that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{name} is not installed: pip install 'densekd[{extra}]'") from error


def declare(network: Any, spec: InputSpec, num_classes: int, tap: str | None) -> nn.Module:
    """Give a foreign network the attributes that ours have; they are no part of its weights."""
    network.input_spec = spec
    network.num_classes = num_classes
    if tap is not None:
        network.pair_wise_tap = tap
    return network
