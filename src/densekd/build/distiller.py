"""Student, teacher, terms and discriminator of a recipe, put together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from densekd.build.networks import build_network
from densekd.build.teachers import build_label_space, build_teacher, checked_scale, freeze
from densekd.build.terms import add_adapters, build_adversary, build_terms, check_depth
from densekd.config import schema
from densekd.config.names import LOSSES
from densekd.distill.distiller import Distiller, PseudoBoxes
from densekd.distill.student import Student
from densekd.errors import UserError
from densekd.models.label_space import LabelSpace
from densekd.models.taps import Taps
from densekd.targets import BoxTarget
from densekd.tasks import Task
from densekd.types import InputSpec


def build_distiller(
    config: schema.Config,
    task: Task,
    *,
    distil: bool,
    device: torch.device,
    networks: Mapping[str, nn.Module] | None = None,
) -> tuple[Distiller, InputSpec]:
    """Networks, taps, terms and discriminator; `distil=False` leaves everything but the student out.

    Args:
        networks: ``"model"`` and ``"teacher"``, where they are objects that the recipe cannot build.
    """
    given = networks or {}
    network, spec = build_network(config.model, task, "model", given=given.get("model"))
    if not distil:
        return Distiller(_placed(config, Student(Taps(network, {}, spec)), device), task), spec
    sections = config.every_teacher
    if not sections:
        raise UserError("teacher: missing; to distil, the config needs a teacher section")
    boxes = config.distill.pseudo_boxes
    if not config.distill.terms and config.distill.holistic is None and boxes is None:
        raise UserError(
            f"distill: no term given; add one of {', '.join([*LOSSES, 'holistic'])} with a weight"
        )
    if boxes is not None and task.target is not BoxTarget:
        raise UserError(
            f"distill.pseudo_boxes: is for detection; {task.name} compares maps, of images without labels too: leave "
            "it out"
        )
    others: dict[str, nn.Module] = {}
    looks: dict[str, tuple[InputSpec, LabelSpace | None]] = {}
    for where, section in sections.items():
        if section.in_channels != config.model.in_channels:
            raise UserError(
                f"{where}.in_channels is {section.in_channels} and model.in_channels "
                f"{config.model.in_channels}; both see the same images"
            )
        space = build_label_space(section, task, where)
        others[where], other_spec = build_teacher(
            section, task, device, space, where, given=given.get(where)
        )
        looks[where] = other_spec, space
    terms, student_taps, teacher_taps = build_terms(config.distill, task, network, others)
    adversary = None
    if config.distill.holistic is not None:
        for where, other in others.items():
            check_depth(other, None, "distill.holistic", where)
        adversary = build_adversary(config.distill.holistic, task, config.model.in_channels, device)
    # Tap, then move, then compile: hooks must be there before the first compiled call.
    student = Taps(network, student_taps, spec).to(device)
    tapped = {
        where: Taps(
            other,
            teacher_taps[where],
            looks[where][0],
            label_space=looks[where][1],
            scale=checked_scale(sections[where], task, where),
        )
        for where, other in others.items()
    }
    add_adapters(terms, task, student, tapped, config.model.in_channels)
    frozen = {
        where.removeprefix("teachers."): freeze(config, sections[where], taps)
        for where, taps in tapped.items()
    }
    distiller = Distiller(
        _placed(config, Student(student, terms), device),
        task,
        teacher=frozen if config.teachers else frozen["teacher"],
        terms=terms,
        adversary=adversary,
        pseudo_boxes=None if boxes is None else PseudoBoxes(boxes.weight, boxes.score),
        mask=config.distill.mask,
    )
    return distiller, spec


def _placed(config: schema.Config, student: Student, device: torch.device) -> Student:
    student.to(device)
    if config.train.channels_last:
        student.to(memory_format=torch.channels_last)
    return student
