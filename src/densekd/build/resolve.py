"""From a name or dotted path to the object, and its call with checked option names."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping
from types import BuiltinFunctionType
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from densekd.config.explain import explain, stray_booleans
from densekd.errors import UserError
from densekd.ops.names import did_you_mean, nearest_few

# What a class that a recipe names must define, by setting: a network, a loss, a data set, a task, a tracker.
NETWORK, LOSS, DATASET, TASK, TRACKER = (
    ("forward",),
    ("__call__",),
    ("__len__",),
    ("loss", "predict", "metric"),
    ("log", "finish"),
)


def import_dotted(path: str, where: str) -> Any:
    """``package.module.Name`` or ``package.module.Class.method`` -> the object."""
    module, _, name = path.rpartition(".")
    owner, _, kind = module.rpartition(".")
    try:
        # By habit of the language, a part with a capital is a class and no module.
        if kind[:1].isupper() and owner:
            return getattr(getattr(importlib.import_module(owner), kind), name)
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where}: {path!r} cannot be imported: {error}. Give package.module.Name of something importable "
            f"from here (PYTHONPATH).{_hidden(path)}"
        ) from error


def resolve(
    name: str, table: Mapping[str, str], where: str, needs: Collection[str] = ()
) -> Callable[..., Any]:
    """The object that a name of `table`, or a dotted path of the user's own, stands for.

    The working folder is searched for dotted paths alone, after all that is installed.

    Args:
        needs: what a class that a dotted path gives must define.

    Raises:
        UserError: an unknown name, or a path that leads to nothing, or to something else than a class or function.
    """
    if name in table:
        return import_dotted(table[name], where)
    if "." not in name:
        raise UserError(f"{where}: {name!r} is unknown; {nearest_few(name, table)}")
    if name.partition(".")[0] in (*sys.stdlib_module_names, *sys.builtin_module_names):
        raise UserError(
            f"{where}: {name!r} is of Python's own library, which holds nothing that a recipe can be made of"
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    found = import_dotted(name, where)
    if not callable(found) or isinstance(found, BuiltinFunctionType):
        raise UserError(
            f"{where}: {name!r} is a {type(found).__name__}; expected a class, or a function that makes the object"
        )
    lacking = [key for key in needs if isinstance(found, type) and not _defines(found, key)]
    if lacking:
        raise UserError(
            f"{where}: the class {name!r} lacks {', '.join(lacking)}, which are called; see docs/extending.md"
        )
    return found


def _defines(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in kind.__mro__)


def _hidden(path: str) -> str:
    """A sentence where a file of the working folder has the name of something installed."""
    root = path.partition(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None)
    here = [os.path.join(os.getcwd(), name) for name in (f"{root}.py", os.path.join(root, ""))]
    if file is None or not any(map(os.path.exists, here)) or file.startswith(tuple(here)):
        return ""
    return f" The {root} of this folder is not it: {file} comes first; give yours another name."


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
            (keys,) = get_args(hints[rest.name])
            for key in get_type_hints(keys):
                default = None if key in keys.__optional_keys__ else inspect.Parameter.empty
                found[key] = inspect.Parameter(key, rest.KEYWORD_ONLY, default=default)
    return found


def accepts(builder: Callable[..., Any], name: str) -> bool:
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters(builder).values())


def annotations_of(builder: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> its annotation; empty where a name in them is imported for type checks alone."""
    function = builder.__init__ if isinstance(builder, type) else builder
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def options_of(
    builder: Callable[..., Any], given: Collection[str] = ()
) -> dict[str, inspect.Parameter]:
    """The parameters that a recipe may set: all but those that are `given` by us."""
    return {
        p.name: p
        for p in parameters(builder).values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given
    }


def checked_options(
    builder: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    given: Collection[str],
    of: str = "",
) -> dict[str, Any]:
    """Options with the types that the builder's annotations name.

    Args:
        given: parameters that are passed by us; no option can set them.
        of: follows "unknown option" in a message.

    Raises:
        UserError: a line for every option that is unknown, missing, of another type or out of range.
    """
    possible = options_of(builder, given)
    annotations = annotations_of(builder)
    lines = [
        f"{where}.{name}: missing; this setting has no default"
        for name, p in possible.items()
        if p.default is p.empty and name not in options
    ]
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key in given or not accepts(builder, key):
            hint = did_you_mean(key, possible)
            lines.append(f"{where}.{key}: unknown option{of}; {hint}")
            continue
        annotation = annotations.get(key, Any)
        checked[key] = value
        try:
            adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
        except PydanticUserError:  # a type that only the builder knows how to check
            continue
        try:
            checked[key] = adapter.validate_python(value)
        except ValidationError as error:
            lines += explain(error, annotation, where, key)
        else:
            lines += stray_booleans(value, checked[key], where, key)
    if lines:
        raise UserError("\n".join(lines))
    return checked


def call(builder: Callable[..., Any], options: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Call with checked option names; `given` is passed where the builder takes it."""
    possible = options_of(builder, given)
    for key in options:
        if not accepts(builder, key) or key in given:
            raise UserError(f"{where}.{key}: unknown option; {did_you_mean(key, possible)}")
    for name, parameter in possible.items():
        if parameter.default is parameter.empty and name not in options:
            raise UserError(f"{where}.{name}: missing; this setting has no default")
    arguments = {k: v for k, v in given.items() if accepts(builder, k)}
    try:
        return builder(**arguments, **options)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError) as error:
        # Values of a kind that the builder does not expect. Of code that is not ours the traceback says more.
        ours = getattr(builder, "__module__", "").startswith("densekd.")
        if not ours or "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise
        shown = ", ".join(f"{key}: {value!r}" for key, value in options.items())
        raise UserError(
            f"{where}: {getattr(builder, '__name__', builder)} cannot be made of {{{shown}}}: "
            f"{type(error).__name__}: {error}"
        ) from error
