"""The frozen teacher of a recipe, live or stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densekd.build import provenance
from densekd.build.data import build_train_loader
from densekd.build.networks import build_network
from densekd.build.settings import naming_settings
from densekd.build.terms import WIDTHS_SIDE
from densekd.config import schema
from densekd.config.names import SELF_TRAINED
from densekd.data.augment import Augment
from densekd.distill.distiller import Distiller
from densekd.distill.maps import TeacherMaps
from densekd.distill.source import LiveTeacher
from densekd.distill.stored.plan import make_plan
from densekd.distill.stored.store import TeacherCache
from densekd.distill.teacher import Teacher
from densekd.engine.launch import Process
from densekd.engine.step import AMP
from densekd.errors import UserError
from densekd.models.taps import Taps
from densekd.ops.files import cache_folder
from densekd.rewrite.fold import fold_norms
from densekd.tasks import Task
from densekd.types import Batch, InputSpec

CACHE = "distill.teacher_cache"
# Argument of the store -> setting; messages begin with the section.
STORE = {name: name for name in ("storage", "top_k", "disk_gb", "folder")} | {
    "epochs": "data.augment_epochs"
}


def build_teacher(
    config: schema.Teacher, task: Task, device: torch.device
) -> tuple[nn.Module, InputSpec]:
    """The bare network on its device; `freeze` makes a `Teacher` of it, once it is tapped."""
    if config.weights is None and not config.allow_untrained:
        keys = ("weights", "pretrained")
        trained_by_builder = any(config.options.get(key) for key in keys) or (
            config.name in SELF_TRAINED and config.options.get("weights", True)
        )
        if not trained_by_builder:
            raise UserError(
                "teacher.weights: a teacher needs trained weights; give --teacher.weights FILE "
                "(train one with `densekd train`), or set teacher.allow_untrained for a test"
            )
    network, spec = build_network(config, task, "teacher")
    return network.to(device), spec


def freeze(config: schema.Config, network: Taps) -> Teacher:
    """The tapped teacher in the form it works in: folded, laid out, compiled. No tap can be added afterwards."""
    settings = config.teacher
    assert settings is not None
    if settings.fold_norms:
        crop = config.data.crop or (WIDTHS_SIDE, WIDTHS_SIDE)
        size = (min(crop[0], WIDTHS_SIDE), min(crop[1], WIDTHS_SIDE))
        images = torch.rand(
            1, settings.in_channels, *size, device=next(network.parameters()).device
        )
        # One that takes no such image stays as it is; what else is wrong the dry run says.
        with suppress(ValueError, TypeError, RuntimeError, AssertionError):
            fold_norms(network, images)
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
    config: schema.Config, distiller: Distiller, reader: Any, augment: Augment, batch: Batch
) -> StoredTeacher:
    """The store that stands in for the teacher. A few records that are there already are compared with the live one.

    Args:
        batch: any of the run's.
    """
    settings, epochs = config.distill.teacher_cache, config.data.augment_epochs
    assert settings is not None
    assert epochs is not None  # checked with the settings
    assert distiller.teacher is not None
    adversary = distiller.adversary
    assert isinstance(distiller.source, LiveTeacher)
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
                config, distiller.task, distiller.teacher, reader, augment
            ),
            images=len(reader),
            epochs=epochs,
            disk_gb=settings.disk_gb,
        )
    dtype = AMP[config.train.amp]
    with (
        naming_settings(STORE, CACHE),
        torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype is not None),
    ):
        for sample in _samples(config, reader, augment, batch.images.device, epochs):
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
    config: schema.Config, reader: Any, augment: Augment, device: torch.device, epochs: int
) -> Iterator[Batch]:
    """Two images at a time from the beginning, the middle and the end of all that is augmented differently."""
    data = replace(config.data, batch_size=2, workers=0)
    few = replace(config, data=data, train=replace(config.train, accumulate=1))
    last = max(0, epochs * len(reader) // 2 - 1)
    for step in sorted({0, last // 2, last}):
        loader = build_train_loader(few, reader, augment, Process(0, 1, device), step)
        yield next(iter(loader)).to(device)
