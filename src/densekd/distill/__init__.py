"""Distillation: the frozen teacher, the terms, the discriminator, and the step's forward passes.

Nothing here knows the engine, so each part works in a training loop of your own.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import densekd
from densekd.distill.balance import Balance
from densekd.distill.discriminator import Discriminator, DiscriminatorLoss
from densekd.distill.distiller import Adversary, Distiller, PseudoBoxes
from densekd.distill.source import LiveTeacher, SeveralTeachers, TeacherSource
from densekd.distill.student import Student
from densekd.distill.teacher import Teacher
from densekd.distill.term import Points, Term

__all__ = [
    "Adversary",
    "Balance",
    "Discriminator",
    "DiscriminatorLoss",
    "Distiller",
    "LiveTeacher",
    "Points",
    "PseudoBoxes",
    "SeveralTeachers",
    "Student",
    "Teacher",
    "TeacherSource",
    "Term",
]


class _Room(ModuleType):
    """This room shares its name with the function ``densekd.distill``, so the room can be called."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Distil by a recipe: see `densekd.workflows.functions.distill`."""
        return densekd.find_public("distill")(*args, **options)


sys.modules[__name__].__class__ = _Room
