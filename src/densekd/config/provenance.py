"""Where weights come from: what travels in a file, what a teacher's file says of its students' scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import densekd
from densekd.config import schema
from densekd.models.weights import read_metadata
from densekd.tasks import Task
from densekd.types import InputSpec


def weights_metadata(config: schema.Config, task: Task, spec: InputSpec) -> dict[str, str]:
    """What travels with the student's weights, so that they can be used without the config.

    One entry of JSON: safetensors writes several entries in an order that changes from process to process, and equal
    runs should give equal files.
    """
    model = config.model
    about = {
        "version": densekd.__version__,
        "task": config.task,
        "model": {"name": model.name, "options": model.options, "in_channels": model.in_channels},
        "input": spec.as_dict(),
        "classes": task.classes,
        "arguments": plain(task.network_arguments),
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
    if teacher is None or teacher.weights is None or not os.path.isfile(teacher.weights):
        return ""
    if file_digest(teacher.weights) in SAW_VAL:
        return "teacher saw val"
    return about_weights(teacher.weights).get("note", "")


def file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(config: schema.Config) -> dict[str, str]:
    """What a run depends on besides its settings: the content of its teacher's file."""
    if config.teacher is None or config.teacher.weights is None:
        return {}
    return {"teacher weights": file_digest(config.teacher.weights)}
