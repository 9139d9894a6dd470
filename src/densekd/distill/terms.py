"""Terms: the one place where a tap's name becomes a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from densekd.ops.resize import resize_labels, resize_map
from densekd.types import DenseOutput

PREDICTION = "prediction"


@dataclass
class Term:
    """One weighted comparison of a student's tensor with a teacher's.

    Attributes:
        name: key in the step's dict: ``distill/<name>``.
        loss: called as ``loss(student, teacher, mask=mask)``.
        weight: multiplies the loss.
        student: ``"prediction"`` or the name of a tapped feature.
        teacher: the same, of the teacher.
    """

    name: str
    loss: nn.Module
    weight: float
    student: str = PREDICTION
    teacher: str = PREDICTION


def select(output: DenseOutput, source: str) -> Tensor:
    """The tensor a name stands for."""
    return output.prediction if source == PREDICTION else output.features[source]


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
    terms: Sequence[Term], student: DenseOutput, teacher: DenseOutput, mask: Tensor | None
) -> dict[str, Tensor]:
    """Weighted terms by name; `mask` (N, H, W) bool at image size, True where a pixel counts."""
    result: dict[str, Tensor] = {}
    for term in terms:
        mine, theirs = match_sizes(select(student, term.student), select(teacher, term.teacher))
        small = None if mask is None else resize_labels(mask, (mine.shape[-2], mine.shape[-1]))
        result[f"distill/{term.name}"] = term.weight * term.loss(mine, theirs, mask=small)
    return result
