"""Distillation: the frozen teacher, the terms, the discriminator, and the step's forward passes.

Import from the files; nothing here knows the engine, so each works in a training loop of your own.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import densekd


class _Room(ModuleType):
    """This room shares its name with the function ``densekd.distill``, so the room can be called."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Distil by a recipe: see `densekd.workflows.functions.distill`."""
        return densekd.find_public("distill")(*args, **options)


sys.modules[__name__].__class__ = _Room
