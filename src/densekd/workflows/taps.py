"""`densekd taps`: the tensors of a network that terms can compare, with the sensible ones marked."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densekd.build.networks import build_network
from densekd.build.saved import build_saved
from densekd.build.task import build_task
from densekd.config import schema
from densekd.config.load import list_configs, load_config, make_config
from densekd.config.names import MODEL_TASKS, MODELS
from densekd.config.tree import apply_overrides
from densekd.errors import UserError
from densekd.models.tap_list import TapRow, list_taps, prediction_channels, sensible_taps
from densekd.ops.names import nearest_few
from densekd.types import InputSpec
from densekd.workflows.load import weights_file
from densekd.workflows.recipe import say_code
from densekd.workflows.share import looks_like_hub_id
from densekd.workflows.validate import stand_in_reader, untrained

SIZE = (256, 256)  # of the image, where a network does not say which one it was made for

# A data set for networks that are named without a recipe: its classes decide how wide a prediction is.
DATA = {
    "segmentation": {"dataset": "scenes"},
    "detection": {"dataset": "scenes", "options": {"target": "boxes"}},
    "depth": {"dataset": "scenes", "options": {"target": "depth"}},
}


@dataclass(frozen=True)
class Table:
    """The taps of one network.

    Attributes:
        role: ``"model"`` or ``"teacher"``, as recipes have it.
        name: of the network.
        size: (height, width) of the image that was passed through it.
        rows: every tensor that can be tapped, in the order of the modules.
        marks: tap path -> why it is sensible.
    """

    role: str
    name: str
    size: tuple[int, int]
    rows: list[TapRow]
    marks: dict[str, list[str]]

    def as_dict(self) -> dict[str, Any]:
        rows = [{**asdict(row), "marks": self.marks.get(row.path, [])} for row in self.rows]
        listed = {row.path for row in self.rows}
        groups = {path: why for path, why in self.marks.items() if path not in listed}
        return {
            "role": self.role,
            "name": self.name,
            "size": list(self.size),
            "taps": rows,
            "levels": groups,
        }


def tap_tables(
    what: str, settings: Mapping[str, Any], size: tuple[int, int] | None = None
) -> list[Table]:
    """A table a network.

    Args:
        what: a network's name or dotted path, a recipe (its model and its teacher), a weights file or run folder, or
            the id of a repository on the Hugging Face hub (``owner/name``).
        settings: dotted name -> value, such as ``{"model.options.backbone": "resnet18"}``.
        size: (height, width) of the image; None takes what the network was made for, or `SIZE`.
    """
    if size is not None and min(size) < 1:
        raise UserError(f"--size {size[0]} {size[1]}: expected a height and a width of 1 or more")
    path = Path(what)
    is_recipe = path.suffix in (".yaml", ".yml")
    if what in MODELS or (_is_dotted(what) and not path.exists() and not is_recipe):
        return _of_recipe(_named(what, dict(settings)), size)
    known = [name.removesuffix(".yaml") for name in list_configs()]
    folders = {
        name.partition("/")[0] for name in known
    }  # a recipe that is misspelt is no id on the hub
    on_hub = looks_like_hub_id(path) and what.partition("/")[0] not in folders
    if (path.exists() or on_hub) and not is_recipe:
        if settings:
            raise UserError(f"{what} says itself how its network is built; it takes no settings")
        saved = build_saved(weights_file(path))
        return [_table("model", saved.about["model"]["name"], saved.network, saved.spec, size)]
    if not path.exists() and not is_recipe and "/" not in what and what not in known:
        stems = {Path(name).name for name in known}
        if what not in stems:
            raise UserError(
                f"{what!r} is neither a network, a recipe, nor a weights file or run folder; "
                f"{nearest_few(what, [*MODELS, *known])}"
            )
    config = load_config(what, dict(settings))
    say_code(config, what)
    return _of_recipe(config, size)


def _is_dotted(what: str) -> bool:
    """package.module.Name, whose package is there."""
    package = what.partition(".")[0]
    if "." not in what or not package.isidentifier():
        return False
    here = (Path(f"{package}.py"), Path(package, "__init__.py"))  # looked up there last
    return importlib.util.find_spec(package) is not None or any(path.is_file() for path in here)


def _named(name: str, settings: dict[str, Any]) -> schema.Config:
    """The recipe of a network that is named alone."""
    task = str(settings.pop("task.name", MODEL_TASKS.get(name, "segmentation")))
    tree: dict[str, Any] = {"model": {"name": name}, "task": {"name": task}}
    tree["data"] = DATA.get(task, DATA["segmentation"])
    apply_overrides(tree, settings)
    return make_config(tree, "the options")


def _of_recipe(config: schema.Config, size: tuple[int, int] | None) -> list[Table]:
    config = untrained(config)
    task = build_task(config, stand_in_reader(config))
    tables = []
    for role, section in {"model": config.model, **config.every_teacher}.items():
        network, spec = build_network(section, task, role)
        tables.append(_table(role, section.name, network, spec, size))
    return tables


def _table(
    role: str, name: str, network: nn.Module, spec: InputSpec, size: tuple[int, int] | None
) -> Table:
    size = size or spec.size or SIZE
    images = torch.full((1, spec.channels, *size), 0.5)
    try:
        rows = list_taps(network, images, spec)
        classes = prediction_channels(network, images, spec)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"{role}: {name} cannot see an image of {size[0]}x{size[1]}: {error}. Give --size HEIGHT WIDTH"
        ) from error
    return Table(role, name, size, rows, sensible_taps(network, rows, size, classes))


def text(table: Table) -> str:
    """For people: a line a tensor, the sensible ones with their mark."""
    listed = {row.path for row in table.rows}
    lines = [
        (path, "", "", "", ", ".join(why))
        for path, why in table.marks.items()
        if path not in listed
    ]
    for row in table.rows:
        shape = "x".join(map(str, row.shape[1:]))
        stride = "" if row.stride is None else str(row.stride)
        lines.append((row.path, row.kind, shape, stride, ", ".join(table.marks.get(row.path, []))))
    head = ("tap", "module", "shape", "stride", "sensible")
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(5)]
    height, width = table.size
    return "\n".join(
        [
            f"{table.role}: {table.name}, an image of {height}x{width}",
            *(
                "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
                for line in [head, *lines]
            ),
        ]
    )
