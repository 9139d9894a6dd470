"""Student, teacher, terms and discriminator of a recipe, put together."""

from __future__ import annotations

import torch

from densekd.build.networks import build_network
from densekd.build.teachers import build_label_space, build_teacher, freeze
from densekd.build.terms import add_adapters, build_adversary, build_terms, check_depth
from densekd.config import schema
from densekd.config.names import LOSSES
from densekd.distill.distiller import Distiller
from densekd.distill.student import Student
from densekd.errors import UserError
from densekd.models.taps import Taps
from densekd.tasks import Task
from densekd.types import InputSpec


def build_distiller(
    config: schema.Config, task: Task, *, distil: bool, device: torch.device
) -> tuple[Distiller, InputSpec]:
    """Networks, taps, terms and discriminator; `distil=False` leaves everything but the student out."""
    network, spec = build_network(config.model, task, "model")
    if not distil:
        return Distiller(_placed(config, Student(Taps(network, {}, spec)), device), task), spec
    if config.teacher is None:
        raise UserError("teacher: missing; to distil, the config needs a teacher section")
    if not config.distill.terms and config.distill.holistic is None:
        raise UserError(
            f"distill: no term given; add one of {', '.join([*LOSSES, 'holistic'])} with a weight"
        )
    if config.teacher.in_channels != config.model.in_channels:
        raise UserError(
            f"teacher.in_channels is {config.teacher.in_channels} and model.in_channels "
            f"{config.model.in_channels}; both see the same images"
        )
    space = build_label_space(config.teacher, task)
    other, other_spec = build_teacher(config.teacher, task, device, space)
    terms, student_taps, teacher_taps = build_terms(config.distill, task, network, other)
    adversary = None
    if config.distill.holistic is not None:
        check_depth(other, None, "distill.holistic")
        adversary = build_adversary(config.distill.holistic, task, config.model.in_channels, device)
    # Tap, then move, then compile: hooks must be there before the first compiled call.
    student = Taps(network, student_taps, spec).to(device)
    teacher = Taps(other, teacher_taps, other_spec, label_space=space)
    add_adapters(terms, task, student, teacher, config.model.in_channels)
    distiller = Distiller(
        _placed(config, Student(student, terms), device),
        task,
        teacher=freeze(config, teacher),
        terms=terms,
        adversary=adversary,
        mask=config.distill.mask,
    )
    return distiller, spec


def _placed(config: schema.Config, student: Student, device: torch.device) -> Student:
    student.to(device)
    if config.train.channels_last:
        student.to(memory_format=torch.channels_last)
    return student
