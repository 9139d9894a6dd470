"""Distillation: the frozen teacher, the terms, the discriminator, and the step's forward passes.

Nothing here knows the engine, so each part works in a training loop of your own.
"""

from densekd.distill.discriminator import Discriminator, DiscriminatorLoss
from densekd.distill.distiller import Adversary, Distiller
from densekd.distill.source import LiveTeacher, SeveralTeachers, TeacherSource
from densekd.distill.student import Student
from densekd.distill.teacher import Teacher
from densekd.distill.term import Term

__all__ = [
    "Adversary",
    "Discriminator",
    "DiscriminatorLoss",
    "Distiller",
    "LiveTeacher",
    "SeveralTeachers",
    "Student",
    "Teacher",
    "TeacherSource",
    "Term",
]
