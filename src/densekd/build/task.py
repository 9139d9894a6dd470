"""The task of a recipe, and what depends on nothing else."""

from __future__ import annotations

import importlib.util
from typing import Any

from densekd.build.resolve import call, resolve
from densekd.config import schema
from densekd.config.names import TASKS
from densekd.errors import UserError
from densekd.tasks import Task


def build_task(config: schema.Config, reader: Any) -> Task:
    """The task with its settings; of the reader it takes names, colours and ids."""
    if config.task == "segmentation":
        given = {k: getattr(reader, k) for k in ("classes", "palette", "ignore_index")}
        where, options = "loss", {**vars(config.loss)}
        options["loss"] = options.pop("name")
    elif config.task == "detection":
        given = {k: getattr(reader, k, None) for k in ("classes", "palette", "category_ids")}
        where, options = "detection", vars(config.detection)
    else:
        given, where, options = {}, "depth", vars(config.depth)
    return call(resolve(config.task, TASKS, "task"), options, where, **given)


def best_metric(config: schema.Config, task: Task) -> str:
    """The metric that decides which weights are the best."""
    best = config.train.best or task.metric_names[0]
    if best not in task.metric_names:
        raise UserError(
            f"train.best: {best!r} is no metric of {task.name}; possible: {', '.join(task.metric_names)}"
        )
    return best


def check_extras(config: schema.Config) -> None:
    if config.task == "detection" and importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError("task detection is scored by faster-coco-eval: pip install 'densekd[det]'")
    if config.train.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("train.tensorboard needs the extra: pip install 'densekd[tensorboard]'")
