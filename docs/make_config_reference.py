"""Writes docs/config.md from the annotations of densekd.config.schema and of the tasks' constructors.

    python docs/make_config_reference.py

A test fails while the committed file is out of date.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from densekd.build.resolve import annotations_of, options_of
from densekd.build.task import OF_THE_READER, task_class
from densekd.config import schema
from densekd.config.names import TASKS
from densekd.config.ranges import Rule, doc_text, parts_of, range_text

PAGE = Path(__file__).resolve().parent / "config.md"

# class -> where its fields stand in a recipe. Order of the page; a class that is missing here is an error.
PLACES = {
    schema.Config: "the top level",
    schema.Model: "model",
    schema.Input: "model.input, teacher.input",
    schema.Teacher: "teacher, teachers.NAME",
    schema.Data: "data",
    schema.Unlabelled: "data.unlabelled",
    schema.Task: "task",
    schema.Distill: "distill",
    schema.Term: "distill.TERM",
    schema.Holistic: "distill.holistic",
    schema.PseudoBoxes: "distill.pseudo_boxes",
    schema.Balance: "distill.balance",
    schema.TeacherCache: "distill.teacher_cache",
    schema.Optim: "optim",
    schema.Group: "optim.groups (a list)",
    schema.Train: "train",
    schema.Evaluate: "evaluate",
}

INTRODUCTION = """\
# Settings

<!-- Made by docs/make_config_reference.py from src/densekd/config/schema.py and src/densekd/tasks. Do not edit. -->

A recipe is a YAML file of sections. What it leaves out has the default given here. `densekd config show RECIPE` \
prints a recipe with every default of its sections filled in; `densekd config validate RECIPE` also builds \
its networks and terms.

- On the command line every setting is `--section.key VALUE` (or `--section.key=VALUE`). The value is read as YAML: \
`--optim.lr 0.02`, `--data.crop '[256, 256]'`, `--distill.holistic null`.
- An unknown key, a value of the wrong type or out of its range and a key that stands twice are errors: status 2, \
and a message with the file, the key, the reason and, for a mistyped key, the nearest one.
- A key under `distill` that is no setting of its own names a term: `distill.pixel_wise.weight`. A key of a term that \
is no setting of a term is an argument of its loss: `distill.pair_wise.granularity`.
- A key under `task` is an argument of the task: `task: {name: depth, bins: 32}`. A task of your own documents its \
arguments in the same way, by annotations: `Annotated[float, Gt(0), Doc("metres")]`.
- `options` of a model or a data set are the arguments of its builder. They are checked against its signature.
"""
HEAD = ["| key | value | default | |", "| --- | --- | --- | --- |"]


def render() -> str:
    """The whole page."""
    classes = {
        c for c in vars(schema).values() if is_dataclass(c) and c.__module__ == schema.__name__
    }
    if classes != set(PLACES):
        raise SystemExit(f"PLACES and the schema differ in {classes ^ set(PLACES)}")
    parts = [INTRODUCTION]
    for section in PLACES:
        parts.append(section_text(section))
        if section is schema.Task:
            parts += [task_text(name) for name in TASKS]
    return "\n".join(parts)


def section_text(section: type) -> str:
    """The table of a dataclass; what it inherits is not repeated."""
    base = section.__base__ if section.__base__ in PLACES else None
    about = " ".join((section.__doc__ or "").split())
    if base is not None:
        about += f" All settings of `{PLACES[base]}`, and:"
    hints = typing.get_type_hints(section, include_extras=True)
    inherited = {f.name for f in fields(base)} if base is not None else set()
    rows = [
        row(f.name, hints[f.name], default_text(default_of(f)))
        for f in fields(section)
        if f.name not in inherited
    ]
    return "\n".join([f"## {PLACES[section]}", "", about, "", *HEAD, *rows, ""])


def task_text(name: str) -> str:
    """The table of a task's constructor."""
    builder = task_class(schema.Task(name))
    hints = annotations_of(builder)
    rows = [
        row(key, hints[key], default_text(MISSING if p.default is p.empty else p.default))
        for key, p in options_of(builder, OF_THE_READER).items()
    ]
    about = f"Settings of `task: {{name: {name}}}`."
    return "\n".join([f"### task: {name}", "", about, "", *HEAD, *rows, ""])


def row(key: str, annotation: Any, default: str) -> str:
    note = doc_text(annotation).replace("|", "\\|")
    return f"| `{key}` | {value_text(annotation)} | {default} | {note} |"


def value_text(annotation: Any) -> str:
    """`Annotated[int, Ge(1)] | None` -> "integer, at least 1, or null"; Literal["a", "b"] -> "`a` or `b`"."""
    kinds, added = parts_of(annotation)
    null = type(None) in kinds
    text = " or ".join(kind_text(kind) for kind in kinds if kind is not type(None))
    limits = range_text(annotation)
    if limits and any(isinstance(extra, Rule) for extra in added):
        text = limits  # a rule says what kind of value it is
    elif limits:
        text += f", {limits}"
    if null:
        text += ", or null" if limits else " or null"
    return text


def kind_text(kind: Any) -> str:
    names = {str: "text", bool: "true or false", float: "number", int: "integer"}
    if kind in names:
        return names[kind]
    if is_dataclass(kind):
        return "section"
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        words = [f"`{word}`" for word in inner]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if issubclass(origin, Mapping):
        values = inner[-1]
        plain = values is Any or is_dataclass(values)
        return "section" if plain else f"section of values ({value_text(values)})"
    assert issubclass(origin, Sequence)
    items = [value_text(item) for item in inner]
    return f"[{', '.join(items)}]" if origin is tuple else f"list of {items[0]}s"


def default_of(setting: Field) -> Any:
    if setting.default_factory is not MISSING:
        return setting.default_factory()
    return setting.default


def default_text(value: Any) -> str:
    if value is MISSING:
        return "required"
    if is_dataclass(value):
        return "its defaults"
    words = {None: "null", True: "true", False: "false", "": '""'}
    if value is None or isinstance(value, (bool, str)):
        return f"`{words.get(value, value)}`"
    if value == 1 / 3:
        return "`1 / 3`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
