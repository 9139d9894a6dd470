"""Where the teacher's maps come from: a live teacher, several of them, or (`densekd.distill.stored`) a store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.distill.maps import TeacherMaps, as_levels, is_prediction, select
from densekd.distill.teacher import Teacher
from densekd.distill.term import Term
from densekd.ops.resize import resize_map
from densekd.tasks import Task
from densekd.types import Batch, DenseOutput


@runtime_checkable
class TeacherSource(Protocol):
    """Gives what the terms compare with."""

    def maps(self, batch: Batch, mask: Tensor | None) -> TeacherMaps:
        """The teacher's maps of a batch, without gradients.

        Args:
            mask: (N, H, W) bool at the size of the images, True where a pixel counts; None: all count.
        """
        ...


class LiveTeacher:
    """One teacher that is asked anew for every batch.

    Args:
        teacher: frozen; tapped where the terms compare features.
        terms: what is compared.
        task: makes maps of the teacher's prediction.
        holistic: whether a discriminator scores the teacher's map too.
        whole: whether the whole prediction is asked for too.
    """

    def __init__(
        self,
        teacher: Teacher,
        terms: Sequence[Term],
        task: Task,
        *,
        holistic: bool = False,
        whole: bool = False,
    ) -> None:
        self.teacher = teacher
        self.terms = list(terms)
        self.task = task
        self.holistic = holistic
        self.whole = whole

    @property
    def teachers(self) -> list[Teacher]:
        return [self.teacher]

    def maps(self, batch: Batch, mask: Tensor | None) -> TeacherMaps:
        return self.ask(batch.images)

    def ask(self, images: Tensor) -> TeacherMaps:
        """(N, C, H, W) RGB in [0, 1] -> maps. No prediction is made where only features are compared."""
        asked = self.holistic or self.whole
        wanted = asked or any(wants_prediction(term, self.task) for term in self.terms)
        output = self.teacher(images, prediction=wanted)
        maps = maps_of(output, self.terms, self.task, holistic=self.holistic)
        maps.prediction = output.prediction if self.whole else None
        return maps


class SeveralTeachers:
    """Several teachers. A term that names one is taught by it; any other by the mean of all predictions.

    The mean is of distributions: of softmax or sigmoid probabilities, in the form in which the task compares
    predictions, given back as logits of the mean; of depth in metres, the arithmetic mean. A temperature above 1 then
    softens the mean distribution (it is not the mean of softened ones). Maps of several sizes are resized to the
    smallest. Confidence is the mean of the teachers' own.

    Args:
        teachers: by name; frozen.
        terms, task, holistic: as in `LiveTeacher`.

    Raises:
        ValueError: a term names an unknown teacher, or compares a feature without saying whose.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        terms: Sequence[Term],
        task: Task,
        *,
        holistic: bool = False,
    ) -> None:
        self.by_name = dict(teachers)
        self.terms = list(terms)
        self.task = task
        self.holistic = holistic
        names = ", ".join(self.by_name)
        for term in self.terms:
            if term.teacher_name is None and not is_prediction(term.teacher, task):
                raise ValueError(
                    f"{term.name}: it compares the feature {term.teacher}, of which several teachers have no mean; "
                    f"give the teachers as a dict and say whose: teacher_name= one of {names}"
                )
            if term.teacher_name is not None and term.teacher_name not in self.by_name:
                raise ValueError(
                    f"{term.name}: teacher_name is {term.teacher_name!r}; the teachers are {names}"
                )

    @property
    def teachers(self) -> list[Teacher]:
        return list(self.by_name.values())

    def maps(self, batch: Batch, mask: Tensor | None) -> TeacherMaps:
        return self.ask(batch.images)

    @torch.no_grad()
    def ask(self, images: Tensor) -> TeacherMaps:
        """(N, C, H, W) RGB in [0, 1] -> maps."""
        shared = [term for term in self.terms if term.teacher_name is None]
        every: list[TeacherMaps] = []
        levels: dict[str, list[Tensor]] = {}
        confidence: dict[str, list[Tensor]] = {}
        for name, teacher in self.by_name.items():
            own = [term for term in self.terms if term.teacher_name == name]
            if not own and not shared and not self.holistic:
                continue
            asked = LiveTeacher(teacher, [*own, *shared], self.task, holistic=self.holistic)
            maps = asked.ask(images)
            every.append(maps)
            for term in own:
                levels[term.name] = maps.levels[term.name]
                if term.wants.confidence:
                    confidence[term.name] = maps.confidence[term.name]
        for term in shared:
            form = prediction_form(self.task) if term.teacher not in self.task.map_names else "none"
            levels[term.name] = _mean_levels([m.levels[term.name] for m in every], form, term.name)
            if term.wants.confidence:
                confidence[term.name] = _mean_levels(
                    [m.confidence[term.name] for m in every], "none", term.name
                )
        holistic = None
        if self.holistic:
            found = [m.holistic for m in every if m.holistic is not None]
            holistic = mean_of(found, self.task.holistic_activation)
        return TeacherMaps(levels, confidence, holistic)


def maps_of(
    output: DenseOutput, terms: Sequence[Term], task: Task, *, holistic: bool = False
) -> TeacherMaps:
    """What the terms (and the discriminator) take of a teacher's output."""
    levels = {term.name: select(output, term.teacher, task) for term in terms}
    confidence = {
        term.name: _confidence(task, output, levels[term.name], term.name)
        for term in terms
        if term.wants.confidence
    }
    return TeacherMaps(levels, confidence, task.holistic_map(output) if holistic else None)


def prediction_form(task: Task) -> str:
    """``"softmax"``, ``"sigmoid"`` or ``"regression"``: what the channels of a prediction are to this task."""
    return task.term_options.get("pixel_wise", {}).get("form", "softmax")


def mean_of(maps: Sequence[Tensor], form: str) -> Tensor:
    """The mean of several teachers' maps (N, C, h, w), as one of them.

    Args:
        form: ``"softmax"`` or ``"sigmoid"``: maps are logits, and the result has the mean probabilities for its own.
            Anything else: the arithmetic mean.
    """
    channels = sorted({x.shape[1] for x in maps})
    if len(channels) > 1:
        raise ValueError(
            f"the teachers' maps have {' and '.join(map(str, channels))} channels, which have no mean: take teachers "
            "of the same classes, or let each term name its teacher"
        )
    smallest = min(maps, key=lambda x: x.shape[-2] * x.shape[-1])
    size = (smallest.shape[-2], smallest.shape[-1])
    stack = torch.stack([resize_map(x, size).float() for x in maps])
    if form == "softmax":
        return _log_mean(F.log_softmax(stack, dim=2))
    if form == "sigmoid":
        return _log_mean(F.logsigmoid(stack)) - _log_mean(F.logsigmoid(-stack))
    return stack.mean(dim=0)


def _log_mean(log_probabilities: Tensor) -> Tensor:
    """The logarithm of the mean over the first dimension of probabilities given as logarithms."""
    return log_probabilities.logsumexp(dim=0) - math.log(len(log_probabilities))


def _mean_levels(maps: Sequence[Sequence[Tensor]], form: str, name: str) -> list[Tensor]:
    counts = {len(levels) for levels in maps}
    if len(counts) > 1:
        raise ValueError(
            f"{name}: the teachers give {' and '.join(map(str, sorted(counts)))} levels, which have no mean; let each "
            "term name its teacher"
        )
    return [mean_of(level, form) for level in zip(*maps, strict=True)]


def wants_prediction(term: Term, task: Task) -> bool:
    """Whether a term takes the teacher's prediction, and not features alone."""
    return term.wants.confidence or is_prediction(term.teacher, task)


def _confidence(
    task: Task, teacher: DenseOutput, maps: Sequence[Tensor], name: str
) -> list[Tensor]:
    """The teacher's confidence at each of its maps; a single confidence map serves all levels."""
    confidence = as_levels(task.confidence(teacher))
    if len(confidence) not in (1, len(maps)):
        raise ValueError(
            f"{name}: the teacher has confidence at {len(confidence)} levels and gives {len(maps)} maps to weight; "
            "compare its pyramid, one map a level of its prediction"
        )
    return confidence if len(confidence) == len(maps) else confidence * len(maps)
