"""A recipe as the commands and the functions of the package take it. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from densekd.config.code import code_named
from densekd.config.load import (
    find_config,
    load_config,
    make_config,
    read_tree,
    setting_names,
    to_tree,
)
from densekd.config.schema import Config
from densekd.config.tree import apply_overrides
from densekd.errors import UserError

# What `densekd.train` and its kin take as a recipe: a shipped name, a YAML file, the nested settings themselves.
Recipe = str | Path | Mapping[str, Any] | Config


def read_recipe(recipe: Recipe, settings: Mapping[str, Any] | None = None) -> Config:
    """A checked recipe with other settings.

    Args:
        recipe: name of a shipped recipe, path of a YAML file, a nested dict as YAML gives it, or a `Config`.
        settings: dotted name -> value, as on the command line: ``{"data.root": "camvid", "train.steps": 100}``.
    """
    changes = dict(settings or {})
    _check_names(changes)
    if isinstance(recipe, (str, Path)):
        return load_config(recipe, changes)
    tree = tree_of(recipe)
    apply_overrides(tree, changes)
    return make_config(tree, "the recipe")


def say_code(config: Config, name: str) -> None:
    """Say which code a recipe names, before any of it is imported (rank 0, on stderr)."""
    code = code_named(config)
    if code and is_first_process():
        print(
            f"densekd: {name} names code, which is imported and run: {', '.join(code)}",
            file=sys.stderr,
        )


def is_first_process() -> bool:
    """Whether this process speaks for all that torchrun or srun started; before any of them has joined the others."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def tree_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as nested plain values, in the user's form and unchecked."""
    if isinstance(recipe, (str, Path)):
        return read_tree(find_config(recipe))
    if isinstance(recipe, Config):
        return to_tree(recipe)
    if isinstance(recipe, Mapping):
        return deepcopy(dict(recipe))
    raise UserError(
        f"the recipe is a {type(recipe).__name__}; expected the name of a shipped recipe, a YAML file, a dict or a "
        "Config"
    )


def _check_names(settings: Mapping[str, Any]) -> None:
    """``{"train": {"steps": 5}}`` would replace the whole section: nobody means that."""
    sections = {name.partition(".")[0] for name in setting_names()}
    for name, value in settings.items():
        if name in sections and isinstance(value, Mapping) and value:
            key = next(iter(value))
            raise UserError(
                f"settings: {name!r} is a whole section; give each setting by its dotted name, as in "
                f"{{{f'{name}.{key}'!r}: {value[key]!r}}}"
            )


def run_folder(out: str | Path, name: str | None, recipe: Recipe, verb: str) -> Path:
    """``OUT/NAME``; the default name is the recipe's, with what is done to it."""
    if name is None:
        if isinstance(recipe, (str, Path)):
            stem = Path(recipe).stem
        elif isinstance(recipe, Config):
            stem = recipe.model.name
        else:
            stem = str(dict(recipe.get("model") or {}).get("name", "recipe"))
        if not isinstance(recipe, (str, Path)):
            stem = stem.rpartition(".")[2]  # of a dotted path
        name = f"{stem}-{verb}"
    if name in ("", ".", "..") or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"--name {name!r} must be a plain folder name")
    return Path(out) / name
