"""Terms: the one place where a tap's name becomes a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from densekd.ops.resize import resize_labels, resize_map
from densekd.tasks import Task
from densekd.types import DenseOutput, Maps

PREDICTION = "prediction"


@dataclass
class Term:
    """One weighted comparison of a student's maps with a teacher's.

    Attributes:
        name: key in the step's dict: ``distill/<name>``.
        loss: called as ``loss(student, teacher, mask=mask)``.
        weight: multiplies the loss.
        student: ``"prediction"``, another map the task knows (depth: ``"depth"``), or the name of a tapped feature.
        teacher: the same, of the teacher.
        confidence: also give the loss ``weight=``, the teacher's confidence (N, 1, h, w) at each place.
    """

    name: str
    loss: nn.Module
    weight: float
    student: str = PREDICTION
    teacher: str = PREDICTION
    confidence: bool = False


def select(output: DenseOutput, source: str, task: Task) -> list[Tensor]:
    """The maps a name stands for: one, or one a level."""
    if source == PREDICTION or source in task.map_names:
        return as_levels(task.map(output, source))
    return as_levels(output.features[source])


def as_levels(maps: Maps) -> list[Tensor]:
    return maps if isinstance(maps, list) else [maps]


def match_sizes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Resize the larger of two maps to the smaller one's size, so that no work is done at full size."""
    if student.shape[-2:] == teacher.shape[-2:]:
        return student, teacher
    area_student = student.shape[-2] * student.shape[-1]
    area_teacher = teacher.shape[-2] * teacher.shape[-1]
    if area_student <= area_teacher:
        return student, resize_map(teacher, (student.shape[-2], student.shape[-1]))
    return resize_map(student, (teacher.shape[-2], teacher.shape[-1])), teacher


def compute_terms(
    terms: Sequence[Term],
    student: DenseOutput,
    teacher: DenseOutput,
    mask: Tensor | None,
    task: Task,
) -> dict[str, Tensor]:
    """Weighted terms by name; of maps that come in levels, the mean over levels.

    Args:
        mask: (N, H, W) bool at image size, True where a pixel counts.

    Raises:
        ValueError: student and teacher have different numbers of levels.
    """
    result: dict[str, Tensor] = {}
    for term in terms:
        mine, theirs = select(student, term.student, task), select(teacher, term.teacher, task)
        if len(mine) != len(theirs):
            raise ValueError(
                f"{term.name}: the student's {term.student} has {len(mine)} levels and the teacher's {term.teacher} "
                f"{len(theirs)}; compare as many of each"
            )
        sure: list[Tensor | None] = [None] * len(mine)
        if term.confidence:
            sure = _confidence(task, teacher, theirs, term.name)
        losses = [
            _at_level(term.loss, s, t, mask, weight)
            for s, t, weight in zip(mine, theirs, sure, strict=True)
        ]
        result[f"distill/{term.name}"] = term.weight * torch.stack(losses).mean()
    return result


def _at_level(
    loss: nn.Module, mine: Tensor, theirs: Tensor, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    mine, theirs = match_sizes(mine, theirs)
    size = (mine.shape[-2], mine.shape[-1])
    small = None if mask is None else resize_labels(mask, size)
    if weight is None:
        return loss(mine, theirs, mask=small)
    return loss(mine, theirs, mask=small, weight=resize_map(weight, size))


def _confidence(
    task: Task, teacher: DenseOutput, maps: Sequence[Tensor], name: str
) -> list[Tensor | None]:
    """The teacher's confidence at each of its maps; a single confidence map serves all levels."""
    sure = as_levels(task.confidence(teacher))
    if len(sure) not in (1, len(maps)):
        raise ValueError(
            f"{name}: the teacher is sure at {len(sure)} levels and gives {len(maps)} maps to weight; "
            "compare its pyramid, one map a level of its prediction"
        )
    return [*sure] if len(sure) == len(maps) else [sure[0]] * len(maps)
