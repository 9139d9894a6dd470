"""The MODEL of commands: a run folder, a weights file, one with its recipe (FILE@RECIPE), a repository on the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from densekd.build.networks import build_network
from densekd.build.provenance import SAW, SAW_VAL, file_digest, weights_metadata
from densekd.build.saved import saved_task
from densekd.build.task import build_task
from densekd.config.schema import Config
from densekd.engine.launch import pick_device
from densekd.errors import UserError, WeightsError
from densekd.export import EXPORTED, ExportedFile, Program, open_exported
from densekd.models.weights import read_metadata
from densekd.workflows.load import LoadedModel, load, weights_file
from densekd.workflows.recipe import read_recipe, say_code
from densekd.workflows.share import looks_like_hub_id
from densekd.workflows.validate import stand_in_reader


def split_name(text: str | Path, recipe: Config | None = None) -> tuple[Path, Config | None]:
    """MODEL -> the path, and the recipe: the one after ``@`` where there is one (``espnet.pth@camvid/espnet``)."""
    path = split_path(text)
    if path == Path(text):
        return path, recipe
    name = str(text).rpartition("@")[2]
    recipe = read_recipe(name)
    say_code(recipe, name)
    return path, recipe


def open_models(
    names: Sequence[str],
    recipe: Config | None = None,
    *,
    best: bool = False,
    device: str = "cpu",
    trusted: bool = False,
) -> list[LoadedModel]:
    """Several models; `recipe` is that of the files among them that do not say which network they are of."""
    if not names:
        raise UserError(
            "give at least one MODEL: the folder of a run, a weights file, an exported file or an id on the hub"
        )
    opened = []
    for name in names:
        path, own = split_name(name)
        if path.suffix in EXPORTED:
            opened.append(open_model(path, trusted=trusted))
            continue
        if (
            own is None
            and path.exists()
            and "densekd" not in read_metadata(weights_file(path, best=best))
        ):
            own = recipe
        opened.append(open_model(path, own, best=best, trusted=trusted, device=device))
    return opened


def open_model(
    path: str | Path,
    recipe: Config | None = None,
    *,
    best: bool = False,
    trusted: bool = False,
    device: str = "cpu",
) -> LoadedModel:
    """What `densekd.load` gives; a weights file that does not say which network it is of takes the recipe's.

    Args:
        path: a run folder or a file; ``FILE@RECIPE`` names its recipe too. What is none of these and looks like one is
            the id of a repository on the Hugging Face hub, ``owner/name`` or ``owner/name@revision``.
        recipe: its model and task sections count, and its data set's names of classes. Its data is not read.
        device: ``"auto"`` too.

    Raises:
        UserError: a recipe beside a file that a run wrote, which knows its own network.
    """
    place = str(pick_device(device))
    path, recipe = split_name(path, recipe)
    if not path.exists() and not looks_like_hub_id(path):
        raise WeightsError(
            f"{path} does not exist; MODEL is the folder of a run, a weights file, an exported file, or the id of a "
            "repository on the Hugging Face hub (owner/name, where no folder is called owner)"
        )
    if path.suffix in EXPORTED:
        if recipe is not None:
            raise UserError(
                f"--recipe: {path} is an exported file and knows its own network; leave --recipe out"
            )
        return loaded_file(open_exported(path, trusted=trusted), trusted=trusted)
    if recipe is None:
        try:
            return load(path, best=best, device=place, trusted=trusted)
        except WeightsError as error:
            if path.is_file() and "densekd" not in read_metadata(path):
                raise WeightsError(
                    f"{error}. Or name a recipe of that network: {path}@camvid/espnet, or --recipe camvid/espnet"
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
    if file_digest(str(file)) in SAW_VAL and not recipe.note:
        about["note"] = SAW
    loaded = LoadedModel(network, task, spec, about, file)
    return loaded.to(place).eval()


def loaded_file(file: ExportedFile, *, trusted: bool = False) -> LoadedModel:
    """An exported file as a model; it runs on the CPU, whatever device its images are on."""
    task = saved_task(file.path, file.model, trusted=trusted)
    program = Program(file)
    return LoadedModel(program, task, program.input_spec, file.model, file.path).eval()


def identity(model: LoadedModel) -> dict[str, object]:
    """What its answers depend on: the file's content, the network, its input, the task."""
    name = model.about.get("model", {})
    return {
        "weights_sha256": file_digest(str(model.path)),
        **_more_files(model),
        "network": name.get("name", type(model.model).__name__),
        "options": name.get("options", {}),
        "input": model.input_spec.as_dict(),
        "task": model.task.name,
        "classes": model.classes,
    }


def model_titles(models: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """What tables and pictures call several models: the names given, else those of their files or runs."""
    if names:
        if len(names) != len(models):
            raise UserError(f"--names: {len(names)} given for {len(models)} models; give one each")
        return list(names)
    stems = [name_of(model) for model in models]
    return stems if len(set(stems)) == len(stems) else [str(split_path(m)) for m in models]


def name_of(model: str | Path) -> str:
    """What a MODEL is called: its file without the ending, its run, or its repository without the owner."""
    path = split_path(model)
    if not path.exists() and looks_like_hub_id(path):
        return path.as_posix().partition("@")[0].rpartition("/")[2]
    return path.stem if path.suffix else path.name


def split_path(text: str | Path) -> Path:
    """The path of a MODEL, without its recipe; of a repository on the hub, its id with the revision."""
    file, at, _ = str(text).rpartition("@")
    whole = not at or Path(text).exists() or looks_like_hub_id(Path(text))
    return Path(text) if whole else Path(file)


def _more_files(model: LoadedModel) -> dict[str, object]:
    """An exported file may consist of two, and its decoding is part of it."""
    if not isinstance(model.model, Program):
        return {}
    file = model.model.file
    return {"format": file.path.suffix, "files": [file_digest(str(part)) for part in file.files()]}
