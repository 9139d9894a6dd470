"""A recipe as a run keeps it, and as a measurement of its step needs it."""

from __future__ import annotations

from dataclasses import replace

from densekd.build import provenance
from densekd.build.data import build_reader, build_unlabelled, check_reader
from densekd.build.run import Sets
from densekd.build.teachers import is_trained
from densekd.config.schema import Config, Distill
from densekd.errors import DataError, UserError
from densekd.workflows.validate import stand_in_reader


def settled(config: Config, distil: bool) -> Config:
    """The settings that the run folder keeps: they say what was done."""
    config = replace(config, note=config.note or provenance.student_note(config, distil=distil))
    if distil:
        return config
    # So a distillation cannot be resumed as a training or back. Alone, a student learns nothing from images alone.
    data = replace(config.data, unlabelled=None)
    return replace(config, data=data, teacher=None, teachers=None, distill=Distill())


def with_random_teacher(config: Config) -> tuple[Config, list[str]]:
    """The recipe with a teacher that can be asked: random where it names no weights, which costs the same."""
    teacher, remarks = config.teacher, []
    if teacher is not None and not is_trained(teacher) and not teacher.allow_untrained:
        config = replace(config, teacher=replace(teacher, allow_untrained=True))
        remarks.append(
            "the recipe names no teacher.weights: a random teacher, which costs the same"
        )
    return config, remarks


def without_store(config: Config) -> Config:
    """The recipe with the live teacher in place of what it said before."""
    return replace(config, distill=replace(config.distill, teacher_cache=None))


def training_set(config: Config, *, made_up: bool) -> Sets:
    """The training set, or what stands in for it; nothing is scored."""
    if made_up:
        if config.data.crop is None:
            raise UserError(
                "--made-up makes images of the crop's size, and the recipe has no data.crop; give --data.crop '[H, W]'"
            )
        return Sets(stand_in_reader(config), made_up=True)
    try:
        reader = build_reader(config.data, config.data.train_split, training=True)
    except UserError as error:
        if config.data.root is None or isinstance(error, DataError):
            raise type(error)(f"{error}\nWithout the data, --made-up takes random images.") from error  # fmt: skip
        raise
    check_reader(reader, config, config.data.train_split, training=True)
    return Sets(reader, unlabelled=build_unlabelled(config.data, reader))
