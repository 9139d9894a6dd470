"""`config validate`: build everything a recipe names and pass one random image through it, without data or weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from densekd.build.data import (
    build_augment,
    build_reader,
    check_data_settings,
    check_unlabelled_options,
    needs_root,
)
from densekd.build.distiller import build_distiller
from densekd.build.dry_run import dry_run, example_batch
from densekd.build.resolve import DATASET, accepts, parameters, resolve
from densekd.build.step import build_optimizer
from densekd.build.task import best_metric, build_task, check_extras, task_class
from densekd.config.names import DATASETS
from densekd.config.schema import Config, Data, Teacher
from densekd.data.base import IGNORE_INDEX, distinct_colours
from densekd.data.sets.folder import BINARY
from densekd.distill.distiller import Distiller
from densekd.engine.step import bare
from densekd.errors import UserError
from densekd.ops.names import did_you_mean
from densekd.profiling import count_macs, count_parameters

# Stands in where only the data set's files say how many classes there are.
CLASSES = 19
SIZE = (128, 256)  # where the recipe trains on whole images
SMALL = 128  # side of the image that shows whether shapes fit: a large network's crop takes a minute on a CPU


def validate(config: Config) -> str:
    """A line a network and a term; UserError says what is wrong.

    Names, options, taps, terms, optimizer groups and class weights are held against what is built. Distillation is
    looked at wherever the recipe has a teacher or a term.
    """
    builder = resolve(config.data.dataset, DATASETS, "data.dataset", DATASET)
    _check_data_options(config.data, builder)
    facts = stand_in_reader(config)
    classes = facts.classes
    task = build_task(config, facts)
    check_data_settings(config)
    best_metric(config, task)
    check_extras(config)

    distil = bool(config.every_teacher or config.distill.terms or config.distill.holistic)
    cpu = torch.device("cpu")
    distiller, spec = build_distiller(untrained(config), task, distil=distil, device=cpu)
    size = config.data.crop or SIZE
    _try(config, distiller, size)
    build_augment(config.data, facts, spec)
    student = bare(distiller.student).model
    build_optimizer(config.optim, student, distiller.terms)

    networks = [("model", config.model.name, student)]
    built = distiller.teachers.values()
    for (where, section), teacher in zip(config.every_teacher.items(), built, strict=True):
        networks.append((where, section.name, teacher.network.model))
    lines = []
    classes_text = f" with {len(classes)} classes" if classes else ""
    for where, name, network in networks:
        macs = count_macs(network, config.model.in_channels, size)
        lines.append(
            f"{where}: {name}, {count_parameters(network) / 1e6:.3f} M parameters, "
            f"{macs / 1e9:.3f} G MACs at {size[0]}x{size[1]}{classes_text}"
        )
    for term in distiller.terms:
        lines.append(
            f"{term.name}: weight {term.weight}, student {term.student}, teacher {term.teacher}"
            + (f" of {term.teacher_name}" if term.teacher_name else "")
        )
    boxes = config.distill.pseudo_boxes
    if boxes is not None:
        lines.append(f"pseudo_boxes: weight {boxes.weight}, boxes of score {boxes.score} and more")
    if config.distill.holistic is not None:
        lines.append(
            f"holistic: weight {config.distill.holistic.weight}, {config.distill.holistic.mode}"
        )
    return "\n".join([*lines, "valid"])


def untrained(config: Config) -> Config:
    """The recipe with random networks: no file of weights is needed."""
    model, teachers = config.model, config.teachers
    return replace(
        config,
        model=replace(model, weights=None, options=_without_backbone_weights(model.options)),
        teacher=config.teacher and _untrained_teacher(config.teacher),
        teachers=teachers and {name: _untrained_teacher(t) for name, t in teachers.items()},
    )


def _untrained_teacher(teacher: Teacher) -> Teacher:
    return replace(
        teacher,
        weights=None,
        options=_without_backbone_weights(teacher.options),
        allow_untrained=True,
        fold_norms=False,  # parameters are counted as they are loaded
    )


def _try(config: Config, distiller: Distiller, size: tuple[int, int]) -> None:
    """One made-up image through networks and terms, a small one if they can see it."""
    channels, cpu = config.model.in_channels, torch.device("cpu")
    small = (min(size[0], SMALL), min(size[1], SMALL))
    try:
        dry_run(distiller, example_batch(distiller.task, channels, small, cpu))
    except UserError:  # it may be the size: a crop of the recipe's own decides
        if small == size:
            raise
        dry_run(distiller, example_batch(distiller.task, channels, size, cpu))


def _without_backbone_weights(options: dict[str, Any]) -> dict[str, Any]:
    return {key: None if key == "backbone_weights" else value for key, value in options.items()}


def _check_data_options(data: Data, builder: Callable[..., Any]) -> None:
    """Check the names of the reader's options alone: what the options do needs the files."""
    given = {"root", "split", "verify_files", "allow_unlabelled"}
    possible = sorted(set(parameters(builder)) - given)
    for section in ("options", "train_options", "val_options"):
        for key in getattr(data, section):
            if key == "items" and not accepts(
                builder, key
            ):  # of a torch data set, which is called without it
                continue
            if key in given or not accepts(builder, key):
                raise UserError(
                    f"data.{section}.{key}: unknown option; {did_you_mean(key, possible)}"
                )
    if data.unlabelled is not None:
        check_unlabelled_options(data.unlabelled)


def stand_in_reader(config: Config) -> Any:
    """What the recipe's reader would say of itself, without its files."""
    builder = resolve(config.data.dataset, DATASETS, "data.dataset", DATASET)
    classes = _class_names(config, builder)
    palette = getattr(inspect.getmodule(builder), "PALETTE", ())
    if len(palette) != len(classes):
        palette = distinct_colours(len(classes))
    return SimpleNamespace(classes=classes, palette=palette, ignore_index=IGNORE_INDEX)


def _class_names(config: Config, builder: Callable[..., Any]) -> list[str]:
    """As the recipe or the data set's file has them; else as many as it has class weights, or `CLASSES`.

    A task that takes none (depth) has none; a data set without files is asked.
    """
    if not accepts(task_class(config.task), "classes"):
        return []
    if not needs_root(builder):  # made, not read: nothing is missing to ask it
        return build_reader(config.data, config.data.val_split, training=False).classes
    options = config.data.options
    items, colours = options.get("items"), options.get("colours")
    known = (
        options.get("classes")
        or (items.get("classes") if isinstance(items, dict) else None)
        or (list(colours) if isinstance(colours, dict) else None)
        or (list(BINARY) if options.get("binary") is True else None)
        or getattr(builder, "classes", None)
        or getattr(inspect.getmodule(builder), "CLASSES", None)
    )
    if isinstance(known, (list, tuple)):
        return [str(name) for name in known]
    weights = config.task.options.get("class_weights")
    return [str(i) for i in range(CLASSES if weights is None else len(weights))]
