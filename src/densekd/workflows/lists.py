"""`densekd.list_models` and `densekd.list_losses`: what a recipe can name. Only `details` of networks import torch."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from densekd.config.names import LOSSES, MODEL_TASKS, MODEL_WEIGHTS, MODELS

# Made by docs/make_model_table.py.
FACTS = Path(__file__).parents[1] / "config" / "models.json"
# Classes that a network is built for where its size is asked for: Cityscapes', COCO's; depth in metres has one map.
CLASSES = {"segmentation": 19, "detection": 80, "depth": 1}


@dataclass(frozen=True)
class ModelRow:
    """A network that has a name.

    Attributes:
        name: for ``model.name`` and ``teacher.name``.
        path: its builder, as a dotted path.
        task: what it predicts.

        weights: which weights are to be had; empty where none are known.

    None where an option must be chosen first:
        parameters: with its default options and `CLASSES` classes.
        tap: the feature that pair-wise terms compare by default.
        stride: of that feature.

    None for names that the table of facts has not yet (`docs/make_model_table.py`):
        required: options without a default, such as ``backbone``.
        pretrained: it has the option ``backbone_weights``, which fills its backbone.
    """

    name: str
    path: str
    task: str
    weights: str = ""
    parameters: int | None = None
    tap: str | None = None
    stride: int | None = None
    required: tuple[str, ...] | None = None
    pretrained: bool | None = None


@dataclass(frozen=True)
class LossRow:
    """A distillation loss that has a name.

    Attributes:
        name: a key under ``distill`` in a recipe.
        path: where it is, as a dotted path.
        compares: ``"prediction"``, ``"features"`` or ``"depth"``, where the recipe does not say.
    """

    name: str
    path: str
    compares: str


def list_models(*, details: bool = False) -> list[ModelRow]:
    """Every network that has a name.

    Args:
        details: build each once, without memory for its weights, to count and describe it (seconds). Without, the
            facts are those of a table, which tests hold equal to what is built.
    """
    rows = [
        ModelRow(k, path, MODEL_TASKS.get(k, "segmentation"), MODEL_WEIGHTS.get(k, ""))
        for k, path in MODELS.items()
    ]
    if details:
        return [_described(row) for row in rows]
    table = json.loads(FACTS.read_text(encoding="utf-8"))
    return [replace(row, **_facts_of(table.get(row.name, {}))) for row in rows]


def _facts_of(facts: dict[str, Any]) -> dict[str, Any]:
    required = facts.get("required")
    return {**facts, **({} if required is None else {"required": tuple(required)})}


def model_lines() -> list[str]:
    """The table of ``densekd list models``."""
    rows = [("name", "task", "M", "stride", "tap", "weights")]
    for row in list_models():
        size = f"{row.parameters / 1e6:.2f}" if row.parameters is not None else ""
        rows.append((row.name, row.task, size, str(row.stride or ""), row.tap or "", row.weights))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [
        " ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]).rstrip()
        for row in rows
    ]


def list_losses() -> list[LossRow]:
    """Every distillation loss that has a name; ``holistic`` comes with a discriminator of its own."""
    rows = [LossRow(name, path, compares) for name, (path, compares) in LOSSES.items()]
    return [*rows, LossRow("holistic", "densekd.losses.holistic", "prediction")]


@cache
def _described(row: ModelRow) -> ModelRow:
    module, _, name = row.path.rpartition(".")
    builder = getattr(import_module(module), name)
    parameters = inspect.signature(builder).parameters
    required = tuple(
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name != "num_classes"
    )
    row = replace(row, required=required, pretrained="backbone_weights" in parameters)
    if required:
        return row
    # Imported here alone, so that the names can be listed without torch.
    torch: Any = import_module("torch")
    with torch.device("meta"):
        network = builder(CLASSES[row.task])
    tap = getattr(network, "pair_wise_tap", None)
    strides = {f.path: f.stride for f in getattr(network, "feature_info", ())}
    return replace(
        row,
        parameters=sum(p.numel() for p in network.parameters()),
        tap=tap,
        stride=None if tap is None else strides.get(tap.replace(":*", ":0")),
    )
