"""A library that may not be installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from densekd.errors import UserError


def package(module: str, name: str, extra: str) -> ModuleType:
    """Import `module`; where it is missing, the error names the package and the extra of densekd that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{name} is not installed: pip install 'densekd[{extra}]'") from error
