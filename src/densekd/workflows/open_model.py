"""The model that predict, export and latency take: a run folder, a weights file, or a recipe with a weights file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from densekd.build.networks import build_network
from densekd.build.provenance import file_digest, weights_metadata
from densekd.build.task import build_task
from densekd.config.schema import Config
from densekd.engine.launch import pick_device
from densekd.errors import UserError, WeightsError
from densekd.models.weights import read_metadata
from densekd.workflows.load import LoadedModel, load, weights_file
from densekd.workflows.validate import stand_in_reader


def open_model(
    path: Path,
    recipe: Config | None = None,
    *,
    best: bool = False,
    trusted: bool = False,
    device: str = "cpu",
) -> LoadedModel:
    """What `densekd.load` gives; a weights file that does not say which network it is of takes the recipe's.

    Args:
        recipe: its model and task sections count, and its data set's names of classes. Its data is not read.
        device: ``"auto"`` too.

    Raises:
        UserError: a recipe beside a file that a run wrote, which knows its own network.
    """
    place = str(pick_device(device))
    if not path.exists():
        raise WeightsError(f"{path} does not exist; MODEL is the folder of a run or a weights file")
    if recipe is None:
        try:
            return load(path, best=best, device=place, trusted=trusted)
        except WeightsError as error:
            if path.is_file() and "densekd" not in read_metadata(path):
                raise WeightsError(
                    f"{error}. Or name a recipe of that network: --recipe camvid/espnet"
                ) from error
            raise
    file = weights_file(path, best=best)
    if "densekd" in read_metadata(file):
        raise UserError(
            f"--recipe: {file} was written by a run and knows its own network; leave --recipe out"
        )
    task = build_task(recipe, stand_in_reader(recipe))
    network, spec = build_network(replace(recipe.model, weights=str(file)), task, "model")
    about = json.loads(weights_metadata(recipe, task, spec)["densekd"])
    loaded = LoadedModel(network, task, spec, about, file)
    return loaded.to(place).eval()


def identity(model: LoadedModel) -> dict[str, object]:
    """What its answers depend on: the file's content, the network, its input, the task."""
    name = model.about.get("model", {})
    return {
        "weights_sha256": file_digest(str(model.path)),
        "network": name.get("name", type(model.model).__name__),
        "options": name.get("options", {}),
        "input": model.input_spec.as_dict(),
        "task": model.task.name,
        "classes": model.classes,
    }
