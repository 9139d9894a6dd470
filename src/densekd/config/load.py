"""A recipe, by path or shipped name -> a checked `Config`, and back. Imports no torch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from densekd.config.explain import explain, stray_booleans
from densekd.config.forms import paths_as_text, to_schema, to_tree
from densekd.config.ranges import annotation_at, keys_of
from densekd.config.relations import broken_relations
from densekd.config.schema import Config
from densekd.config.tree import MOST_CHARACTERS, apply_overrides, parse_yaml
from densekd.errors import UserError
from densekd.ops.names import nearest

__all__ = [
    "dump_config",
    "find_config",
    "list_configs",
    "load_config",
    "make_config",
    "setting_names",
    "shipped_configs",
    "to_tree",
]

_ADAPTER = TypeAdapter(Config)


def shipped_configs() -> Path:
    """The folder of the recipes that travel with the package (in a checkout: its configs/)."""
    inside = Path(__file__).resolve().parent.parent / "configs"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[3] / "configs"


def list_configs() -> list[str]:
    root = shipped_configs()
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """A path as given, or a shipped recipe: ``camvid/espnet``, ``configs/camvid/espnet.yaml``, ``espnet``."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the YAML file of one recipe")
    known = list_configs()
    wanted = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    matches = [k for k in known if k.removesuffix(".yaml") == wanted]
    matches = matches or [k for k in known if Path(k).stem == wanted]
    if len(matches) == 1:
        return shipped_configs() / matches[0]
    if matches:
        raise UserError(
            f"config {str(name)!r} is ambiguous; it may be any of: {', '.join(matches)}"
        )
    near = nearest(wanted, [k.removesuffix(".yaml") for k in known], 3)
    raise UserError(
        f"config {str(name)!r} is neither a file nor a shipped recipe. "
        + (f"Did you mean {', '.join(near)}? " if near else "")
        + f"Shipped: {', '.join(known) or 'none'}"
    )


def load_config(name: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a recipe by path or shipped name, apply dotted overrides, check all but names and options.

    Names (of networks, data sets, losses, tasks) and their options are checked where they are built (`densekd.build`).
    """
    path = find_config(name)
    tree = read_tree(path)
    where = str(path)
    if overrides:
        apply_overrides(tree, overrides)
        where += " with " + " ".join(f"--{key}" for key in overrides)
    return make_config(tree, where)


def read_tree(path: Path) -> dict[str, Any]:
    """A recipe's file as nested plain values, in the user's form and unchecked."""
    tree = parse_yaml(_text(path), str(path)) or {}
    _check_mapping(tree, str(path))
    return tree


def _text(path: Path) -> str:
    """No more of a file than a recipe may have, and one character that shows that there is more."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a recipe: {error}") from None


def make_config(tree: dict[str, Any], where: str) -> Config:
    """A nested dict in user form -> `Config`; UserError names `where`, the key, the reason and a near match."""
    _check_mapping(tree, where)
    try:
        tree = to_schema(paths_as_text(tree), where)
        config = _ADAPTER.validate_python(tree)
    except ValidationError as error:
        lines = explain(error, Config)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(
            f"{where}: is nested too deep; a recipe has sections in sections"
        ) from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        # The forms that a section may have are taken apart before their types are checked.
        raise UserError(f"{where}: cannot be read as sections of settings: {error}") from error
    else:
        lines = stray_booleans(tree, config) or broken_relations(config)
        if not lines:
            return config
    raise UserError("\n".join(f"{where}: {line}" for line in lines))


def _check_mapping(tree: Any, where: str) -> None:
    if not isinstance(tree, dict):
        raise UserError(f"{where}: a config is a mapping of sections, got {type(tree).__name__}")


def dump_config(config: Config) -> str:
    return yaml.safe_dump(to_tree(config), sort_keys=False, default_flow_style=None, width=100)


def setting_names() -> list[str]:
    """Dotted name of every setting that lies in a section: ``["model.name", ..., "train.steps", ...]``."""
    return [
        f"{section.name}.{key}"
        for section in fields(Config)
        for key in keys_of(annotation_at(Config, [section.name]))
    ]
