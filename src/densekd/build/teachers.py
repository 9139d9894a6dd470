"""The frozen teacher of a recipe, live or stored."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densekd.build import provenance
from densekd.build.data import build_second, build_train_loader, in_small_batches
from densekd.build.networks import PRETRAINED, build_network, is_pretrained
from densekd.build.resolve import NETWORK, accepts, resolve
from densekd.build.settings import naming_settings
from densekd.build.terms import WIDTHS_SIDE
from densekd.config import schema
from densekd.config.names import MODELS, SELF_TRAINED
from densekd.data.augment import Augment
from densekd.distill.distiller import Distiller
from densekd.distill.maps import TeacherMaps
from densekd.distill.source import LiveTeacher, SeveralTeachers
from densekd.distill.stored.plan import make_plan
from densekd.distill.stored.store import TeacherCache
from densekd.distill.teacher import Teacher
from densekd.engine.launch import Process
from densekd.engine.step import AMP
from densekd.errors import UserError
from densekd.models.foreign.hf import class_count
from densekd.models.label_space import REST, LabelSpace
from densekd.models.taps import Taps
from densekd.ops.files import cache_folder
from densekd.ops.names import did_you_mean
from densekd.rewrite.fold import fold_norms
from densekd.targets import BoxTarget, ClassMap
from densekd.tasks import Task
from densekd.types import Batch, InputSpec

CACHE = "distill.teacher_cache"
# Argument of the store -> setting; messages begin with the section.
STORE = {name: name for name in ("storage", "top_k", "disk_gb", "folder")} | {
    "epochs": "data.augment_epochs"
}


def build_teacher(
    config: schema.Teacher,
    task: Task,
    device: torch.device,
    space: LabelSpace | None = None,
    where: str = "teacher",
    *,
    given: nn.Module | None = None,
) -> tuple[nn.Module, InputSpec]:
    """The bare network on its device; `freeze` makes a `Teacher` of it, once it is tapped."""
    if given is None and not config.allow_untrained and not is_trained(config):
        raise UserError(
            f"{where}.weights: a teacher needs trained weights; give --{where}.weights FILE "
            f"(train one with `densekd train`), or set {where}.allow_untrained for a test"
        )
    num_classes = None if space is None else space.inputs
    network, spec = build_network(config, task, where, num_classes=num_classes, given=given)
    trained = getattr(network, "trained_classes", None)
    if trained not in (None, getattr(network, "num_classes", None)) and not config.allow_untrained:
        raise UserError(
            f"{where}: its weights are for {trained} classes and the student has {len(task.classes)}; say which of the "
            f"teacher's indices each of the student's classes is, as in {where}.classes: "
            f"{{{task.classes[0]}: [0, 3], ...}}"
        )
    return network.to(device), spec


def is_trained(config: schema.Teacher) -> bool:
    """Whether a teacher has weights: of a file, or such as its network comes with."""
    keys = ("weights", "pretrained", PRETRAINED)
    return (
        config.weights is not None
        or any(config.options.get(key) for key in keys)
        or (config.name in SELF_TRAINED and bool(config.options.get("weights", True)))
    )


def checked_scale(config: schema.Teacher, task: Task, where: str = "teacher") -> float:
    """By how much the images are enlarged for the teacher; UserError where it would answer in pixels of its own."""
    if config.scale != 1 and task.target is BoxTarget:
        raise UserError(
            f"{where}.scale: is {config.scale:g}; leave it out with {task.target.name}, which are in pixels of the "
            "image that the detector sees"
        )
    return config.scale


def build_label_space(
    config: schema.Teacher, task: Task, where: str = "teacher"
) -> LabelSpace | None:
    """How the teacher's classes become the student's (its `classes` and `activation`); None: as they are."""
    if config.activation != "softmax" and task.target is not ClassMap:
        raise UserError(
            f"{where}.activation: {config.activation} is for maps of classes; leave it out with {task.target.name}"
        )
    if config.classes is None:
        return _same_classes(config, len(task.classes), where)
    if task.target not in (ClassMap, BoxTarget):
        raise UserError(f"{where}.classes: leave it out with {task.target.name}, which has none")
    unknown = [name for name in config.classes if name not in task.classes]
    if unknown:
        raise UserError(
            f"{where}.classes: the student has no class {unknown[0]!r}; {did_you_mean(unknown[0], task.classes)}"
        )
    missing = [name for name in task.classes if name not in config.classes]
    if missing:
        raise UserError(
            f"{where}.classes: nothing is said of {', '.join(missing)}; give the teacher's indices of each, or [] "
            "where the teacher knows no such class"
        )
    groups = [config.classes[name] for name in task.classes]
    inputs = config.num_classes or _classes_of_weights(config)
    builder = resolve(config.name, MODELS, f"{where}.name", NETWORK)
    if inputs is None and accepts(builder, "num_classes") and not is_pretrained(builder):
        if config.weights is not None and Path(config.weights).exists():
            raise UserError(
                f"{where}.num_classes: missing; {config.weights} does not say how many classes the teacher predicts"
            )
        inputs = max((index + 1 for group in groups for index in group), default=None)
    with naming_settings({}, f"{where}.classes"):
        try:
            return LabelSpace(groups, inputs, config.activation)
        except ValueError as error:
            raise UserError(str(error)) from error


def _same_classes(config: schema.Teacher, count: int, where: str) -> LabelSpace | None:
    """The space of a teacher of the student's classes, by its activation."""
    if config.activation == "softmax":
        return None
    channels = config.num_classes or count
    if channels == count:
        return LabelSpace([[i] for i in range(count)], channels, config.activation)
    if channels == count - 1 and config.activation == "sigmoid":
        return LabelSpace([[REST], *([i] for i in range(channels))], channels, "sigmoid")
    raise UserError(
        f"{where}.num_classes: {channels} channels of a yes or no, and the student has {count} classes; expected "
        f"{count}, or {count - 1} with the student's first class for none of them, or {where}.classes to say which is "
        "which"
    )


def _classes_of_weights(config: schema.Teacher) -> int | None:
    """How many classes the weights were trained for; None where the file does not say, or is not there."""
    folder = config.options.get("path" if config.name == "hf" else PRETRAINED)
    if config.weights is None and isinstance(folder, str) and config.options.get("weights", True):
        return class_count(folder)
    if config.weights is None or not Path(config.weights).exists():
        return None
    return len(provenance.about_weights(config.weights).get("classes", [])) or None


@torch.no_grad()
def label_space_remarks(
    teacher: Teacher | Taps, images: Tensor, where: str = "teacher"
) -> list[str]:
    """How much of what the teacher says belongs to none of the student's classes."""
    tapped = teacher.network if isinstance(teacher, Teacher) else teacher
    space = tapped.label_space
    if space is None:
        return []
    network = copy.copy(tapped)
    network.label_space = None
    logits = network.forward(images).prediction  # a compiled call would be the original's
    if not isinstance(logits, Tensor):
        return []
    unused = [str(i) for i in range(logits.shape[1]) if i not in space.used]
    if not unused:
        return [f"{where}.classes: all {logits.shape[1]} classes of the teacher are used"]
    return [
        f"{where}.classes: {len(unused)} of the teacher's {logits.shape[1]} classes belong to none of the student's "
        f"({', '.join(unused)}); they have {space.left_over(logits):.1%} of the probability on a first batch, which "
        "is taken off, and the rest sums to 1 again"
    ]


def freeze(config: schema.Config, settings: schema.Teacher, network: Taps) -> Teacher:
    """The tapped teacher in the form it works in: folded, laid out, compiled. No tap can be added afterwards."""
    if settings.fold_norms:
        crop = config.data.crop or (WIDTHS_SIDE, WIDTHS_SIDE)
        size = (min(crop[0], WIDTHS_SIDE), min(crop[1], WIDTHS_SIDE))
        # One that takes no such image, or has no parameters, stays as it is; what else is wrong the dry run says.
        with suppress(ValueError, TypeError, RuntimeError, AssertionError, StopIteration):
            device = next(network.parameters()).device
            fold_norms(network, torch.rand(1, settings.in_channels, *size, device=device))
    channels_last = settings.channels_last
    if channels_last is None:
        channels_last = config.train.channels_last
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if settings.compile:
        network.compile()
    precision = settings.precision
    return Teacher(
        network,
        dtype=None if precision == "same" else AMP.get(precision) or torch.float32,
        channels_last=channels_last,
        batch_size=settings.batch_size,
    )


def open_teacher_cache(
    config: schema.Config,
    distiller: Distiller,
    reader: Any,
    augment: Augment,
    batch: Batch,
    *,
    unlabelled: Any | None = None,
) -> StoredTeacher:
    """The store that stands in for the teacher. A few records that are there already are compared with the live one.

    Args:
        batch: any of the run's.
        unlabelled: the images of `data.unlabelled`.
    """
    second = build_second(config.data, unlabelled, augment)
    settings, epochs = config.distill.teacher_cache, config.data.augment_epochs
    assert settings is not None
    assert epochs is not None  # checked with the settings
    adversary = distiller.adversary
    assert isinstance(distiller.source, (LiveTeacher, SeveralTeachers))
    with naming_settings(STORE, CACHE):
        plan = make_plan(
            distiller.student,
            distiller.source,
            batch.images,
            activation="none" if adversary is None else adversary.discriminator.activation,
            mask=distiller.mask,
            storage=settings.storage,
            top_k=settings.top_k,
        )
    with naming_settings(STORE, CACHE):
        cache = TeacherCache(
            distiller.source,
            plan,
            folder=Path(settings.folder).expanduser()
            if settings.folder
            else cache_folder("teacher"),
            identity=provenance.teacher_cache_identity(
                config, distiller.task, distiller.teachers, reader, augment, second
            ),
            images=len(reader) if second is None else (len(reader), len(second.reader)),
            epochs=epochs,
            disk_gb=settings.disk_gb,
        )
    dtype = AMP[config.train.amp]
    with (
        naming_settings(STORE, CACHE),
        torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        device = batch.images.device
        for sample in _samples(config, reader, augment, device, epochs, unlabelled):
            mask = distiller.task.mask(sample, distiller.mask)
            cache.check(sample, mask, same_images=config.data.cache != "device")
    return StoredTeacher(cache)


class StoredTeacher:
    """A recipe's store of the teacher's maps: its errors name the setting."""

    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def maps(self, batch: Batch, mask: Tensor | None) -> TeacherMaps:
        with naming_settings(STORE, CACHE):
            return self.cache.maps(batch, mask)

    def __str__(self) -> str:
        return str(self.cache)


def _samples(
    config: schema.Config,
    reader: Any,
    augment: Augment,
    device: torch.device,
    epochs: int,
    unlabelled: Any | None,
) -> Iterator[Batch]:
    """Two images of a set at a time from the beginning, the middle and the end of all that is augmented differently."""
    data = replace(in_small_batches(config.data, 2), batch_size=2, workers=0)
    few = replace(config, data=data, train=replace(config.train, accumulate=1))
    last = max(0, epochs * len(reader) // 2 - 1)
    for step in sorted({0, last // 2, last}):
        process = Process(0, 1, device)
        loader = build_train_loader(few, reader, augment, process, step, unlabelled=unlabelled)
        yield next(iter(loader)).to(device)
