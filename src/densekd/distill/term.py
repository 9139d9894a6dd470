"""A term: one weighted comparison of the student's maps with the teacher's, with all that belongs to it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from densekd.distill.balance import Balance
from densekd.distill.maps import PREDICTION, TeacherMaps, match_sizes, select
from densekd.losses.wants import Wants, wants_of
from densekd.ops.resize import resize_labels, resize_map
from densekd.tasks import Task
from densekd.types import DenseOutput

Weight = float | Callable[[int], float]


class Points:
    """A weight that is linear between points, and constant before the first and after the last.

    Args:
        points: (step, weight), with rising steps of 0 or more and weights of 0 or more.

    Raises:
        ValueError: there is no point, or steps do not rise, or a number is negative.

    Example:
        >>> ramp = Points([(0, 0.0), (200, 3.0)])
        >>> ramp(0), ramp(50), ramp(1000)
        (0.0, 0.75, 3.0)
    """

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        self.steps = [int(step) for step, _ in points]
        self.weights = [float(weight) for _, weight in points]
        rising = all(a < b for a, b in pairwise(self.steps))
        if not self.steps or not rising or min(self.steps + self.weights) < 0:
            raise ValueError(
                f"the points are {list(points)}; expected (step, weight), one or more, with rising steps and weights "
                "of 0 or more"
            )

    def __call__(self, step: int) -> float:
        after = bisect_right(self.steps, step)
        if after == 0:
            return self.weights[0]
        if after == len(self.steps):
            return self.weights[-1]
        begin, end = self.steps[after - 1], self.steps[after]
        low, high = self.weights[after - 1], self.weights[after]
        return low + (high - low) * (step - begin) / (end - begin)

    def __repr__(self) -> str:
        return str([list(point) for point in zip(self.steps, self.weights, strict=True)])


class Term(nn.Module):
    """Owns a loss, its weight, the names of the maps that it compares, and its state.

    Parameters and buffers of the adapter and of the loss are the term's own: `Student` holds the term, so they are
    trained with the student, kept in step over ranks, saved for a resumed run, and never exported. Several terms may
    use one loss.

    Args:
        name: key in the step's dict: ``distill/<name>``. Unique among the terms.
        loss: a function or module, called as ``loss(student, teacher, mask=mask)`` with two maps (N, C, h, w) of one
            size and a mask (N, h, w) bool or None; gives a scalar. See `densekd.losses.Wants` for more.
        weight: multiplies the loss: a number, or a function of the step (optimizer steps done, from 0) as `Points` is.
        student: ``"prediction"``, another map that the task knows (depth: ``"depth"``), or the name of a tapped
            feature.
        teacher: the same, of the teacher.
        teacher_name: which of several named teachers; None is the only one, or the mean of the predictions of all.
        adapter: maps the student's feature (each level of it) before the comparison, for instance a 1x1 convolution to
            the teacher's width.
        wants: what the loss asks for; None takes what it declares.
        balance: makes the weight the size of the term's gradient; see `Balance`. `Distiller` measures and applies it.

    Example:
        >>> from densekd.losses import PairWise
        >>> term = Term("pair_wise", PairWise(), 10.0, student="layer4", teacher="layer4")
        >>> ramp = Term("late", PairWise(), Points([(0, 0.0), (1000, 1.0)]), student="b3", teacher="b3")
        >>> ramp.weight_at(250)
        0.25
    """

    def __init__(
        self,
        name: str,
        loss: Callable[..., Tensor],
        weight: Weight = 1.0,
        student: str = PREDICTION,
        teacher: str = PREDICTION,
        *,
        teacher_name: str | None = None,
        adapter: nn.Module | None = None,
        wants: Wants | None = None,
        balance: Balance | None = None,
    ) -> None:
        super().__init__()
        self.balance = balance
        self.name = name
        self.loss = loss
        self.weight = weight
        self.student = student
        self.teacher = teacher
        self.teacher_name = teacher_name
        self.adapter = adapter
        self.wants = wants_of(loss) if wants is None else wants

    @property
    def is_weight_fixed(self) -> bool:
        return self.balance is None and not callable(self.weight)

    def weight_at(self, step: int) -> float:
        return self.weight(step) if callable(self.weight) else self.weight

    def forward(
        self,
        student: DenseOutput,
        teacher: TeacherMaps,
        mask: Tensor | None,
        task: Task,
        *,
        targets: Any = None,
        step: int = 0,
    ) -> Tensor:
        """The weighted loss, a scalar; of maps that come in levels, the mean over levels.

        Args:
            mask: (N, H, W) bool at the size of the images, True where a pixel counts.
            targets: the batch's, for a loss that wants them.
            step: optimizer steps done.

        Raises:
            ValueError: student and teacher have different numbers of levels.
        """
        student_maps = self.student_maps(student, task)
        maps = teacher.levels[self.name]
        self.check_levels(student_maps, maps)
        confidence = teacher.confidence.get(self.name, [None] * len(maps))
        sizes = teacher.reduced.get(self.name, [None] * len(maps))
        context: dict[str, Any] = {}
        if self.wants.targets:
            context["targets"] = targets
        if self.wants.step:
            context["step"] = step
        losses = [
            self._at_level(*level, mask, context)
            for level in zip(student_maps, maps, confidence, sizes, strict=True)
        ]
        return self.weight_at(step) * torch.stack(losses).mean()

    def student_maps(self, output: DenseOutput, task: Task) -> list[Tensor]:
        """The student's maps as the loss gets them, one a level."""
        maps = select(output, self.student, task)
        return maps if self.adapter is None else [self.adapter(x) for x in maps]

    def check_levels(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        if len(student) != len(teacher):
            raise ValueError(
                f"{self.name}: the student's {self.student} has {len(student)} levels and the teacher's {self.teacher} "
                f"{len(teacher)}; compare as many of each"
            )

    def _at_level(
        self,
        student: Tensor,
        teacher: Tensor,
        confidence: Tensor | None,
        reduced_from: tuple[int, int] | None,
        mask: Tensor | None,
        context: dict[str, Any],
    ) -> Tensor:
        more = dict(context)
        size = self.wants.size
        if reduced_from is not None:
            student = resize_map(student, reduced_from)
            more["pooled_teacher"] = True
        elif size is None:
            student, teacher = match_sizes(student, teacher)
        if size is None:
            size = (student.shape[-2], student.shape[-1])
        small = None if mask is None else resize_labels(mask, size)
        if confidence is not None:
            more["weight"] = resize_map(confidence, size)
        return self.loss(student, teacher, mask=small, **more)


def named_parameters(terms: Iterable[Term]) -> Iterator[tuple[str, nn.Parameter]]:
    """What terms train, each parameter once: ``adapters.TERM.weight`` and, of the losses, ``terms.TERM.weight``."""
    seen: set[int] = set()
    for term in terms:
        for name, parameter in term.named_parameters():
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            owner, _, rest = name.partition(".")
            yield f"{'adapters' if owner == 'adapter' else 'terms'}.{term.name}.{rest}", parameter
