"""Terms: the one place where a tap's name becomes a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    size = compared_size(student, teacher)
    return resize_map(student, size), resize_map(teacher, size)


def compared_size(student: Tensor, teacher: Tensor) -> tuple[int, int]:
    """(h, w) of the smaller of two maps."""
    area_student = student.shape[-2] * student.shape[-1]
    area_teacher = teacher.shape[-2] * teacher.shape[-1]
    smaller = student if area_student <= area_teacher else teacher
    return smaller.shape[-2], smaller.shape[-1]


@dataclass
class TeacherMaps:
    """The teacher's side of every comparison, as a live teacher or a store of its maps gives it.

    Attributes:
        levels: term's name -> its maps (N, C, h, w), one a level.
        confidence: name of a term that asks for it -> (N, 1, h, w), one a level.
        holistic: what the discriminator looks at; None without one.
        reduced: name of a term whose maps its loss has reduced already -> the size of each level before. The loss
            then takes ``pooled_teacher=True``.
    """

    levels: dict[str, list[Tensor]]
    confidence: dict[str, list[Tensor]] = field(default_factory=dict)
    holistic: Tensor | None = None
    reduced: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


def teacher_maps(
    terms: Sequence[Term], teacher: DenseOutput, task: Task, *, holistic: bool = False
) -> TeacherMaps:
    """What the terms (and the holistic term) take of a teacher's output."""
    levels = {term.name: select(teacher, term.teacher, task) for term in terms}
    confidence = {
        term.name: _confidence(task, teacher, levels[term.name], term.name)
        for term in terms
        if term.confidence
    }
    seen = task.holistic_map(teacher) if holistic else None
    return TeacherMaps(levels, confidence, seen)


def ask_teacher(
    teacher: nn.Module, images: Tensor, terms: Sequence[Term], task: Task, *, holistic: bool
) -> TeacherMaps:
    """A live teacher's side of the terms; it makes no prediction where only its features are compared."""
    wanted = holistic or any(
        term.confidence or term.teacher == PREDICTION or term.teacher in task.map_names
        for term in terms
    )
    return teacher_maps(terms, teacher(images, prediction=wanted), task, holistic=holistic)


def compute_terms(
    terms: Sequence[Term],
    student: DenseOutput,
    teacher: TeacherMaps,
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
        mine, theirs = select(student, term.student, task), teacher.levels[term.name]
        check_levels(term, mine, theirs)
        sure = teacher.confidence.get(term.name, [None] * len(mine))
        sizes = teacher.reduced.get(term.name, [None] * len(mine))
        losses = [
            _at_level(term.loss, s, t, mask, weight, size)
            for s, t, weight, size in zip(mine, theirs, sure, sizes, strict=True)
        ]
        result[f"distill/{term.name}"] = term.weight * torch.stack(losses).mean()
    return result


def check_levels(term: Term, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    if len(mine) != len(theirs):
        raise ValueError(
            f"{term.name}: the student's {term.student} has {len(mine)} levels and the teacher's {term.teacher} "
            f"{len(theirs)}; compare as many of each"
        )


def _at_level(
    loss: nn.Module,
    mine: Tensor,
    theirs: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    reduced_from: tuple[int, int] | None,
) -> Tensor:
    more: dict[str, Any] = {}
    # A loss may say at which size it compares: it then resizes both maps itself.
    size = getattr(loss, "size", None)
    if reduced_from is not None:
        mine = resize_map(mine, reduced_from)
        more["pooled_teacher"] = True
    elif size is None:
        mine, theirs = match_sizes(mine, theirs)
    if size is None:
        size = (mine.shape[-2], mine.shape[-1])
    small = None if mask is None else resize_labels(mask, size)
    if weight is not None:
        more["weight"] = resize_map(weight, size)
    return loss(mine, theirs, mask=small, **more)


def _confidence(
    task: Task, teacher: DenseOutput, maps: Sequence[Tensor], name: str
) -> list[Tensor]:
    """The teacher's confidence at each of its maps; a single confidence map serves all levels."""
    sure = as_levels(task.confidence(teacher))
    if len(sure) not in (1, len(maps)):
        raise ValueError(
            f"{name}: the teacher is sure at {len(sure)} levels and gives {len(maps)} maps to weight; "
            "compare its pyramid, one map a level of its prediction"
        )
    return sure if len(sure) == len(maps) else sure * len(maps)
