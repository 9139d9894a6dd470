"""What is stored of each sample so that the terms can do without the teacher, and in how many bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from densekd.distill.maps import PREDICTION, TeacherMaps, compared_size, select
from densekd.distill.source import LiveTeacher, SeveralTeachers
from densekd.distill.stored.codec import FORMS, Storage, make_storage
from densekd.distill.term import Term
from densekd.errors import UserError
from densekd.losses import Wants
from densekd.models.taps import evaluating
from densekd.ops.names import bytes_text
from densekd.ops.resize import resize_labels, resize_map
from densekd.types import DenseOutput


@dataclass
class Kept:
    """One map that is stored of each sample.

    Attributes:
        kind: ``"map"``, ``"confidence"`` or ``"holistic"``: where in `TeacherMaps` it stands.
        term: a term that compares it; empty for the discriminator's.
        level: of that term.
        size: (h, w) it is compared at, or its own where a loss enlarges it itself.
        wants: of the loss that reduces it before it is stored; None stores the map.
        storage: its bytes.
        name: of its file.
    """

    kind: str
    term: str
    level: int
    size: tuple[int, int]
    wants: Wants | None
    storage: Storage
    name: str

    def of(self, maps: TeacherMaps, mask: Tensor | None) -> Tensor:
        """This map, of a live teacher's maps."""
        if self.kind == "holistic":
            assert maps.holistic is not None
            return resize_map(maps.holistic, self.size)
        levels = maps.levels if self.kind == "map" else maps.confidence
        x = resize_map(levels[self.term][self.level], self.size)
        if self.wants is None:
            return x
        return _reduced(self.wants, x, None if mask is None else resize_labels(mask, self.size))


@dataclass
class Plan:
    """What is stored of a sample, and which of it each term takes: places in `kept`, one a level of its maps."""

    kept: list[Kept] = field(default_factory=list)
    levels: dict[str, list[int]] = field(default_factory=dict)
    confidence: dict[str, list[int]] = field(default_factory=dict)
    holistic: int | None = None

    @property
    def nbytes(self) -> int:
        """The size of a sample's records, with their checksums."""
        return sum(one.storage.nbytes + 4 for one in self.kept)

    def __str__(self) -> str:
        return ", ".join(
            f"{k.name.rpartition('-')[0]} {bytes_text(k.storage.nbytes)}" for k in self.kept
        )


@torch.no_grad()
def make_plan(
    student: nn.Module,
    source: LiveTeacher | SeveralTeachers,
    images: Tensor,
    *,
    activation: str = "none",
    mask: str = "label",
    storage: str = "fp16",
    top_k: int = 4,
) -> Plan:
    """What has to be stored so that the terms can do without the teacher, found by one forward pass of both networks.

    Args:
        student: gives `DenseOutput`; only its maps' sizes matter.
        source: the live teacher (or several), with the terms and the task.
        images: (N, C, H, W) of the size of all others; the first is enough.
        activation: that the discriminator applies to the teacher's map, ``"softmax"``, ``"sigmoid"`` or ``"none"``; for
            a source with a holistic map.
        mask: the kind of mask that reductions are made under.
        storage: ``"fp16"``, ``"int8"``, or ``"top_k"`` for class maps (whatever else is stored in int8).
        top_k: probabilities kept.

    Raises:
        UserError: `top_k` does not fit what the terms see of the teacher's prediction.
        ValueError: an unknown storage, or levels that do not go together.
    """
    if storage not in FORMS:
        raise ValueError(f"storage is {storage!r}; choose one of {FORMS}")
    with evaluating(student):
        output: DenseOutput = student(images[:1])
    terms, task = source.terms, source.task
    maps = source.ask(images[:1])
    teacher_output = source.teachers[0](images[:1])
    predicted = select(teacher_output, PREDICTION, task)[0]
    # The discriminator of class maps scores the prediction itself.
    same = source.holistic and task.holistic_map(teacher_output) is predicted
    plan = Plan()
    known: dict[str, int] = {}

    def keep(
        kind: str, what: str, size: tuple[int, int], values: Tensor, form: str, **more: Any
    ) -> int:
        """The place of such a map, stored once however many terms take it."""
        made = make_storage(form, (values.shape[1], values.shape[2], values.shape[3]), top_k)
        described = f"{what} {size} {made}"
        if described not in known:
            known[described] = len(plan.kept)
            short = "".join(c if c.isalnum() or c in "._" else "_" for c in what.split(" ")[0])
            grid = f"{values.shape[2]}x{values.shape[3]}"
            name = f"{short}-{grid}-{form}-{digest_of(described)[:8]}"
            plan.kept.append(Kept(kind, size=size, storage=made, name=name, **more))
        return known[described]

    other = "int8" if storage == "top_k" else storage
    prediction = other
    if storage == "top_k":
        prediction = _class_form(terms, activation if same else None, predicted.shape[1], top_k)
    for term in terms:
        pairs = term.student_maps(output, task), maps.levels[term.name]
        term.check_levels(*pairs)
        whose = "" if term.teacher_name is None else f"{term.teacher_name}."
        for level, (s, t) in enumerate(zip(*pairs, strict=True)):
            size = _stored_size(term.wants, s, t)
            at = {"term": term.name, "level": level}
            values, what, wants = resize_map(t, size), f"{whose}{term.teacher} {level}", None
            form = prediction if term.teacher == PREDICTION else other
            if term.wants.reduce is not None:
                wants, form = term.wants, other
                values = _reduced(wants, values, None)
                kind = type(term.loss).__name__
                what = f"{whose}{term.teacher}_{kind} {level} {_arguments(term.loss)} mask {mask}"
            index = keep("map", what, size, values, form, wants=wants, **at)
            plan.levels.setdefault(term.name, []).append(index)
            if term.wants.confidence:
                values = resize_map(maps.confidence[term.name][level], size)
                what = f"{whose}confidence {level}"
                index = keep("confidence", what, size, values, other, wants=None, **at)
                plan.confidence.setdefault(term.name, []).append(index)
    if maps.holistic is not None:
        size = compared_size(task.holistic_map(output), maps.holistic)
        what, form = (f"{PREDICTION} 0", prediction) if same else ("holistic", other)
        values = resize_map(maps.holistic, size)
        plan.holistic = keep("holistic", what, size, values, form, term="", level=0, wants=None)
    return plan


def _class_form(terms: Sequence[Term], activation: str | None, channels: int, top_k: int) -> str:
    """``"top_k"``, where everything that takes the prediction uses its softmax alone.

    Args:
        activation: the discriminator's, where it scores the prediction.
    """
    if top_k >= channels:
        raise UserError(
            f"`top_k` is {top_k} of {channels} classes: nothing would be saved; take fewer, or `storage` int8"
        )
    others = [
        term.name for term in terms if term.teacher == PREDICTION and not term.wants.softmax_alone
    ]
    if activation not in (None, "softmax"):
        others.append("holistic")
    if others:
        raise UserError(
            f"`storage` top_k keeps probabilities of a softmax, and {', '.join(others)} sees the prediction in another "
            "form; take fp16 or int8"
        )
    return "top_k"


def _stored_size(wants: Wants, student: Tensor, teacher: Tensor) -> tuple[int, int]:
    """(h, w) of the smallest teacher's map that a loss can do with."""
    size = wants.size
    if size is None:
        return compared_size(student, teacher)
    # The loss resizes both maps to its own size: a smaller teacher's map stays as it is until then.
    own = (teacher.shape[-2], teacher.shape[-1])
    return own if own[0] * own[1] < size[0] * size[1] else (size[0], size[1])


def _reduced(wants: Wants, values: Tensor, mask: Tensor | None) -> Tensor:
    assert wants.reduce is not None
    return wants.reduce(values, mask)


def _arguments(loss: Any) -> str:
    """What a loss was built with: its reduction may depend on it."""
    given = {k: v for k, v in vars(loss).items() if k not in vars(nn.Module())}
    return f"{type(loss).__module__}.{type(loss).__qualname__} {sorted(given.items())}"


def digest_of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
