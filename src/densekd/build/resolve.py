"""From a name or dotted path to the object, and its call with checked option names."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from densekd.errors import UserError
from densekd.ops.names import did_you_mean


def import_dotted(path: str, where: str) -> Any:
    """``package.module.Name`` -> the object."""
    module, _, name = path.rpartition(".")
    # As `python -m densekd` has it: a user's own file beside the recipe is found by the command too.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}: {path!r} cannot be imported: {error}. Give package.module.Name of something importable "
            "from here (PYTHONPATH)."
        ) from error


def resolve(name: str, table: Mapping[str, str], where: str) -> Callable[..., Any]:
    if name in table:
        return import_dotted(table[name], where)
    if "." in name:
        return import_dotted(name, where)
    raise UserError(f"{where}: {name!r} is unknown; {did_you_mean(name, table)}")


def parameters(builder: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a builder takes, by name; ``**files: Unpack[FileOptions]`` stands for the keys of that TypedDict."""
    found = dict(inspect.signature(builder).parameters)
    for rest in [p for p in found.values() if p.kind is p.VAR_KEYWORD]:
        try:
            hints = get_type_hints(builder.__init__ if isinstance(builder, type) else builder)
        except (NameError, TypeError):  # annotations of a user's own that cannot be evaluated
            continue
        if get_origin(hints.get(rest.name)) is Unpack:
            del found[rest.name]
            for key in get_type_hints(*get_args(hints[rest.name])):
                found[key] = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY)
    return found


def accepts(builder: Callable[..., Any], name: str) -> bool:
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters(builder).values())


def call(builder: Callable[..., Any], options: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Call with checked option names; `given` is passed where the builder takes it."""
    possible = [
        p.name
        for p in parameters(builder).values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given
    ]
    for key in options:
        if not accepts(builder, key) or key in given:
            raise UserError(f"{where}.{key}: unknown option; {did_you_mean(key, possible)}")
    arguments = {k: v for k, v in given.items() if accepts(builder, k)}
    try:
        return builder(**arguments, **options)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
