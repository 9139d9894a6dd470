"""From the name of a map to its tensor, and what terms take of a teacher's output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from densekd.ops.resize import resize_map
from densekd.tasks import Task
from densekd.types import DenseOutput, Maps

PREDICTION = "prediction"


@dataclass
class TeacherMaps:
    """The teacher's part of every comparison, whether it comes from a live teacher or from a store of its maps.

    Attributes:
        levels: term's name -> its maps (N, C, h, w), one a level.
        confidence: name of a term that wants it -> (N, 1, h, w) in [0, 1], one a level.
        holistic: the map that the discriminator scores, (N, K, h, w); None without a discriminator.
        reduced: name of a term whose maps its loss has reduced already -> the size (h, w) of each level before. The
            loss then takes ``pooled_teacher=True``.
        prediction: the teacher's whole prediction, where its boxes are asked for.
    """

    levels: dict[str, list[Tensor]]
    confidence: dict[str, list[Tensor]] = field(default_factory=dict)
    holistic: Tensor | None = None
    reduced: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    prediction: Any = None


def is_prediction(source: str, task: Task) -> bool:
    """Whether a name stands for a map that the task makes of the prediction, and not for a tapped feature."""
    return source == PREDICTION or source in task.map_names


def select(output: DenseOutput, source: str, task: Task) -> list[Tensor]:
    """The maps that a name stands for: one, or one a level."""
    if is_prediction(source, task):
        return as_levels(task.map(output, source))
    return as_levels(output.features[source])


def as_levels(maps: Maps) -> list[Tensor]:
    return maps if isinstance(maps, list) else [maps]


def match_sizes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Resize the larger of two maps to the smaller one's size, so that no work is done at full size."""
    size = compared_size(student, teacher)
    return resize_map(student, size), resize_map(teacher, size)


def compared_size(student: Tensor, teacher: Tensor) -> tuple[int, int]:
    """(h, w) of the smaller of two maps."""
    area_student = student.shape[-2] * student.shape[-1]
    area_teacher = teacher.shape[-2] * teacher.shape[-1]
    smaller = student if area_student <= area_teacher else teacher
    return smaller.shape[-2], smaller.shape[-1]
