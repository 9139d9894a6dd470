"""The task of a recipe, and what depends on nothing else."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from densekd.build.resolve import TASK, call, checked_options, options_of, resolve
from densekd.build.trackers import check_trackers
from densekd.config import schema
from densekd.config.names import TASKS
from densekd.errors import UserError
from densekd.tasks import Task

# What a task takes of the data set where its constructor has a parameter of that name; no recipe sets these.
OF_THE_READER = ("classes", "palette", "ignore_index", "category_ids")


def task_class(settings: schema.Task) -> Callable[..., Task]:
    return resolve(settings.name, TASKS, "task", TASK)


def task_name(settings: schema.Task) -> str:
    """The task's own plain name, also where the recipe names it by a dotted path."""
    return getattr(task_class(settings), "name", settings.name)


def check_task(settings: schema.Task) -> dict[str, Any]:
    """The task's options with the types of its constructor; UserError names those that are unknown or out of range."""
    of = f" of the task {task_name(settings)}"
    return checked_options(task_class(settings), settings.options, "task", OF_THE_READER, of)


def task_setting_names() -> list[str]:
    """Dotted name of every setting of the tasks that have a name: ``["task.loss", ..., "task.bins", ...]``."""
    classes = [task_class(schema.Task(name)) for name in TASKS]
    keys = {key: None for builder in classes for key in options_of(builder, OF_THE_READER)}
    return [f"task.{key}" for key in keys]


def build_task(config: schema.Config, reader: Any) -> Task:
    """The task with its settings; of the reader it takes names, colours and ids."""
    given = {key: getattr(reader, key) for key in OF_THE_READER if hasattr(reader, key)}
    return call(task_class(config.task), check_task(config.task), "task", **given)


def best_metric(config: schema.Config, task: Task) -> str:
    """The metric that decides which weights are the best."""
    best = config.train.best or task.metric_names[0]
    if best not in task.metric_names:
        raise UserError(
            f"train.best: {best!r} is no metric of {task.name}; possible: {', '.join(task.metric_names)}"
        )
    return best


def check_extras(config: schema.Config) -> None:
    """UserError where a package is missing that the task's scores or a setting need."""
    for module, extra in getattr(task_class(config.task), "packages", {}).items():
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"task {task_name(config.task)} is scored by {module.replace('_', '-')}: pip install 'densekd[{extra}]'"
            )
    check_trackers(config.train)
