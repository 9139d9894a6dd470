"""Where weights come from: what travels in a file, what a teacher's file says of its students' scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import densekd
from densekd.config import schema
from densekd.config.load import to_tree
from densekd.data.base import sources_of
from densekd.data.cache.key import stamp
from densekd.data.loader import Unlabelled
from densekd.models.weights import read_metadata, weights_file
from densekd.tasks import Task
from densekd.types import InputSpec

# What a task takes from the data set besides its classes, where it takes it.
OF_THE_DATA = ("palette", "ignore_index", "category_ids")


def weights_metadata(config: schema.Config, task: Task, spec: InputSpec) -> dict[str, str]:
    """What travels with the student's weights, so that they can be used without the config.

    One entry of JSON: safetensors writes several entries in an order that changes from process to process, and equal
    runs should give equal files.
    """
    model = config.model
    own = {name: getattr(task, name, None) for name in OF_THE_DATA}
    about = {
        "version": densekd.__version__,
        "task": task.name,
        "model": {
            "name": model.name,
            "options": model.options,
            "in_channels": model.in_channels,
            **({} if model.prediction is None else {"prediction": model.prediction}),
        },
        "input": spec.as_dict(),
        "classes": task.classes,
        "arguments": plain(task.network_arguments),
        "task_section": {"name": config.task.name, "options": plain(config.task.options)},
        **{name: value for name, value in own.items() if value is not None},
        "note": config.note,
    }
    return {"densekd": json.dumps(about)}


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back: tuples become lists."""
    return json.loads(json.dumps(dict(arguments)))


def about_weights(path: str) -> dict[str, Any]:
    """What `weights_metadata` put into a weights file; empty for any other file."""
    text = read_metadata(path).get("densekd")
    return json.loads(text) if text else {}


# The authors' published CamVid checkpoints (ESPNet, ESPNet distilled, ESPNet-C distilled): trained on train + val.
SAW_VAL = {
    "75272b19fd7a73204f0bb5c0adfaafb4914d9b204ab553a6811c43b5b43d8e88",
    "db8a5ef2a820bd117ee24b05b221be14dbc73f5a1bd04b47a4c235280ba71f84",
    "96816b2fc96ccc3d4872c76af8a031cb977be658ad616661ab780fd2f62595a5",
}


def teacher_note(teacher: schema.Teacher | None) -> str:
    """What must stand beside every score of this teacher's students."""
    if teacher is None or teacher.weights is None or not os.path.exists(teacher.weights):
        return ""
    if file_digest(teacher.weights) in SAW_VAL:
        return "teacher saw val"
    return about_weights(teacher.weights).get("note", "")


def file_digest(path: str) -> str:
    with open(weights_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(config: schema.Config) -> dict[str, str]:
    """What a run depends on besides its settings: the content of its teacher's file."""
    if config.teacher is None or config.teacher.weights is None:
        return {}
    return {"teacher weights": file_digest(config.teacher.weights)}


def state_digest(module: nn.Module) -> str:
    """Of all parameters and buffers, by name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def samples_digest(reader: Any, root: str | None) -> str:
    """A digest of a data set's content: every sample's name, and size and time of change of its files.

    Of samples that are made of no files (the built-in scenes) a few are read instead, and `root` counts too.
    """
    digest = hashlib.blake2b(digest_size=16)
    stamps: dict[Any, str] = {}
    loose = []
    for index in range(len(reader)):
        digest.update(f"{reader.name(index)}\n".encode())
        files = sources_of(reader, index)
        if not files:
            loose.append(index)
        for path in files:
            if path not in stamps:
                stamps[path] = str(stamp(path))
            digest.update(stamps[path].encode())
    if loose:
        digest.update(str(root).encode())
    for index in loose[:: max(1, len(loose) // 4)][:4]:
        image = reader.read(index).image
        digest.update(f"{image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


# Settings that change neither an augmented sample nor, by much, what a teacher says of it.
_NOT_OF_THE_SAMPLE = {
    "root", "workers", "cache", "cache_gb", "batch_size", "on_bad_file", "val_split", "val_options", "unlabelled",
}  # fmt: skip


def teacher_cache_identity(
    config: schema.Config,
    task: Task,
    teacher: nn.Module,
    reader: Any,
    augment: Any,
    second: Unlabelled | None = None,
) -> dict[str, Any]:
    """All that a teacher's maps of the augmented samples depend on, in plain values."""
    more: dict[str, Any] = {}
    if second is not None:
        assert config.data.unlabelled is not None
        more["unlabelled"] = {
            "dataset": config.data.unlabelled.dataset,
            "samples": samples_digest(second.reader, config.data.unlabelled.root),
            "augment": repr(second.transform),
        }
    assert config.teacher is not None
    tree = to_tree(config)
    data = {k: v for k, v in tree["data"].items() if k not in _NOT_OF_THE_SAMPLE}
    options = {k: v for k, v in tree["teacher"]["options"].items() if "weights" not in k}
    precision = config.teacher.precision
    for name in ("classes", "prediction"):
        if getattr(config.teacher, name) is not None:
            more[f"teacher_{name}"] = getattr(config.teacher, name)
    if config.teacher.activation != "softmax":
        more["teacher_activation"] = config.teacher.activation
    return {
        "version": densekd.__version__,
        "task": {"name": task.name, **plain(task.network_arguments)},
        "teacher": {
            "name": config.teacher.name,
            "options": options,
            "input": tree["teacher"]["input"],
            "precision": config.train.amp if precision == "same" else precision,
            "state": state_digest(teacher),
        },
        "data": data,
        "samples": samples_digest(reader, config.data.root),
        "augment": repr(augment),
        # Images made on the device are equal up to rounding only.
        "made on": "device" if config.data.cache == "device" else "host",
        "seed": config.seed,
        **more,
    }
