"""Where weights come from: what travels in a file, what a teacher's file says of its students' scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
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
from densekd.errors import WeightsError
from densekd.models.foreign._runtimes import parts_of, program_about
from densekd.models.weight_files import weights_file
from densekd.models.weights import read_metadata
from densekd.ops.names import printable
from densekd.tasks import Task
from densekd.types import InputSpec

# What a task takes from the data set besides its classes, where it takes it.
OF_THE_DATA = ("palette", "ignore_index", "category_ids")


def weights_metadata(config: schema.Config, task: Task, spec: InputSpec) -> dict[str, str]:
    """What travels with the student's weights, so that they can be used without the config.

    One entry of JSON, so that what other programs write beside it cannot be taken for ours.
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
            **({"int8": True} if model.int8 else {}),
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


# Entry of the description -> what it must be where it is there.
ENTRIES = {
    "version": str, "task": str, "model": dict, "input": dict, "classes": list, "arguments": dict,
    "task_section": dict, "note": str, "palette": list, "ignore_index": int, "category_ids": list,
}  # fmt: skip


def about_weights(path: str) -> dict[str, Any]:
    """What `weights_metadata` put into a weights file; empty for any other file.

    The file may come from anyone: control characters, which would reach a terminal with a message, come as ``\\x1b``.

    Raises:
        WeightsError: the description is no JSON, or holds something else than a description does.
    """
    text = read_metadata(path).get("densekd")
    if not text:
        return {}
    try:
        about = printable_tree(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: its description is damaged ({error}); copy the file again"
        ) from error
    if not isinstance(about, dict):
        raise WeightsError(
            f"{path}: its description lacks task and all else (it is a {type(about).__name__}); copy the file again"
        )
    wrong = [key for key, kind in ENTRIES.items() if not isinstance(about.get(key, kind()), kind)]
    if not wrong and not all(isinstance(name, str) for name in about.get("classes", [])):
        wrong = ["classes"]
    if wrong:
        raise WeightsError(
            f"{path}: its description lacks {', '.join(wrong)} or holds something else there; copy the file again"
        )
    return about


def printable_tree(value: Any) -> Any:
    """Plain values with `printable` strings."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [printable_tree(inner) for inner in value]
    if isinstance(value, dict):
        return {printable(key): printable_tree(inner) for key, inner in value.items()}
    return value


# The authors' published CamVid checkpoints (ESPNet, ESPNet distilled, ESPNet-C distilled): trained on train + val.
SAW_VAL = {
    "75272b19fd7a73204f0bb5c0adfaafb4914d9b204ab553a6811c43b5b43d8e88",
    "db8a5ef2a820bd117ee24b05b221be14dbc73f5a1bd04b47a4c235280ba71f84",
    "96816b2fc96ccc3d4872c76af8a031cb977be658ad616661ab780fd2f62595a5",
}


SAW = "saw val"


def teachers_note(config: schema.Config) -> str:
    """What must stand beside every score of a student of these teachers."""
    notes = [teacher_note(teacher) for teacher in config.every_teacher.values()]
    return "; ".join(dict.fromkeys(note for note in notes if note))


def teacher_note(teacher: schema.Teacher | None) -> str:
    """What must stand beside every score of this teacher's students."""
    if teacher is None:
        return ""
    if teacher.name == "exported" and "path" in teacher.options:
        note = str(program_about(Path(teacher.options["path"]).expanduser()).get("note", ""))
    else:
        note = weights_note(teacher.weights)
    return f"teacher {note}" if note == SAW else note


def weights_note(path: str | None) -> str:
    """What a weights file says of the data that it has seen; the published ones that saw val say nothing themselves."""
    if path is None or not os.path.exists(path):
        return ""
    return SAW if file_digest(path) in SAW_VAL else about_weights(path).get("note", "")


def student_note(config: schema.Config, *, distil: bool) -> str:
    """What must stand beside every score of a run's student: what its teachers and its first weights have seen."""
    first = weights_note(config.model.weights)
    notes = [teachers_note(config) if distil else "", f"weights {first}" if first == SAW else first]
    return "; ".join(dict.fromkeys(note for note in notes if note))


def file_digest(path: str) -> str:
    with open(weights_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(config: schema.Config) -> dict[str, str]:
    """What a run depends on besides its settings: the content of its teachers' files."""
    found = {}
    for where, teacher in config.every_teacher.items():
        if teacher.weights is not None:
            found[f"{where} weights"] = file_digest(teacher.weights)
        elif teacher.name == "exported" and "path" in teacher.options:
            parts = parts_of(Path(teacher.options["path"]).expanduser())
            found[f"{where} program"] = " ".join(file_digest(str(p)) for p in parts if p.is_file())
    return found


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


# Settings that change neither an augmented sample nor, by much, what a teacher says of it; which samples there are, the
# digest of the samples says.
_NOT_OF_THE_SAMPLE = {
    "root", "workers", "cache", "cache_gb", "batch_size", "on_bad_file", "val_split", "val_options", "unlabelled",
    "val_fraction", "val_groups", "val_seed",
}  # fmt: skip


def teacher_cache_identity(
    config: schema.Config,
    task: Task,
    teachers: Mapping[str, nn.Module],
    reader: Any,
    augment: Any,
    second: Unlabelled | None = None,
) -> dict[str, Any]:
    """All that the teachers' maps of the augmented samples depend on, in plain values.

    Args:
        teachers: as in `Distiller.teachers`.
    """
    more: dict[str, Any] = {}
    if second is not None:
        assert config.data.unlabelled is not None
        more["unlabelled"] = {
            "dataset": config.data.unlabelled.dataset,
            "samples": samples_digest(second.reader, config.data.unlabelled.root),
            "augment": repr(second.transform),
        }
    tree = to_tree(config)
    data = {k: v for k, v in tree["data"].items() if k not in _NOT_OF_THE_SAMPLE}
    if config.teachers:
        about = {
            name: _of_teacher(config, settings, teachers[name])
            for name, settings in config.teachers.items()
        }
        more["teachers"] = about
    else:
        assert config.teacher is not None
        more["teacher"] = _of_teacher(config, config.teacher, teachers[""])
        # Beside it, as they stood before there could be several teachers.
        more |= {f"teacher_{key}": value for key, value in _reading_of(config.teacher).items()}
    return {
        "version": densekd.__version__,
        "task": {"name": task.name, **plain(task.network_arguments)},
        "data": data,
        "samples": samples_digest(reader, config.data.root),
        "augment": repr(augment),
        # Images made on the device are equal up to rounding only.
        "made on": "device" if config.data.cache == "device" else "host",
        "seed": config.seed,
        **more,
    }


def _of_teacher(
    config: schema.Config, settings: schema.Teacher, network: nn.Module
) -> dict[str, Any]:
    """What one teacher's maps depend on."""
    precision = settings.precision
    about = {
        "name": settings.name,
        "options": {k: v for k, v in settings.options.items() if "weights" not in k},
        "input": plain(vars(settings.input)),
        "precision": config.train.amp if precision == "same" else precision,
        "state": state_digest(network),
    }
    if settings.runtime != "eager":
        about["runtime"] = settings.runtime
    return {**about, **_reading_of(settings)} if config.teachers else about


def _reading_of(settings: schema.Teacher) -> dict[str, Any]:
    """How a teacher's answer is read, where it is not as by default."""
    given: dict[str, Any] = {"classes": settings.classes, "prediction": settings.prediction}
    if settings.activation != "softmax":
        given["activation"] = settings.activation
    if settings.scale != 1:
        given["scale"] = settings.scale
    return {key: value for key, value in given.items() if value is not None}
