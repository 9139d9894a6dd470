"""A recipe as users write it, and as the schema has it.

Users write terms, a term's arguments and a task's settings without a section of their own (`distill.pair_wise.weight`,
`task.bins`); the schema keeps them apart (`distill.terms`, `options`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import PurePath
from typing import Any

import yaml

from densekd.config.names import PROGRAMS
from densekd.config.schema import Config, Distill, Task, Term
from densekd.errors import UserError

_DISTILL_KEYS = {f.name for f in fields(Distill)}
_TERM_KEYS = {f.name for f in fields(Term)}
_TASK_KEYS = {f.name for f in fields(Task)}
# Sections that earlier recipes had -> the task whose settings they held.
_OLD_SECTIONS = {"loss": "segmentation", "detection": "detection", "depth": "depth"}


def to_schema(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """User form -> schema form."""
    if old := [section for section in _OLD_SECTIONS if section in tree]:
        raise UserError("\n".join(f"{where}: {_new_spelling(tree, section)}" for section in old))
    return _gather_terms(_gather_task(_name_programs(tree)), where)


def to_tree(config: Config) -> dict[str, Any]:
    """Schema form -> user form: what `config show` prints and the run folder keeps."""
    tree = asdict(config)
    terms = tree["distill"].pop("terms")
    for name, term in terms.items():
        options = term.pop("options")
        tree["distill"][name] = {**{k: v for k, v in term.items() if v != ""}, **options}
    tree["task"] = {"name": config.task.name, **tree["task"]["options"]}
    return plain(tree)


def teachers_of(tree: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """`Config.every_teacher` of a tree: section -> its settings; empty where nothing teaches."""
    several = tree.get("teachers")
    if several:
        return {f"teachers.{name}": section for name, section in several.items()}
    return {"teacher": tree["teacher"]} if tree.get("teacher") else {}


def plain(value: Any) -> Any:
    """With lists for tuples, as YAML and JSON give them back."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def paths_as_text(value: Any) -> Any:
    """With text for every `pathlib.Path`, since a recipe holds plain values only."""
    if isinstance(value, dict):
        return {k: paths_as_text(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(paths_as_text(v) for v in value)
    return str(value) if isinstance(value, PurePath) else value


def _name_programs(tree: dict[str, Any]) -> dict[str, Any]:
    """``teacher: FILE.onnx`` and ``teacher.name: FILE.onnx`` mean the program in that file; so do all `PROGRAMS`."""
    tree = dict(tree)
    for section in ("model", "teacher"):
        if section in tree:
            tree[section] = _program(tree[section])
    several = tree.get("teachers")
    if isinstance(several, dict):
        tree["teachers"] = {name: _program(section) for name, section in several.items()}
    return tree


def _program(section: Any) -> Any:
    """A network's section, or the name of a file in its place -> the section."""
    whole = section if isinstance(section, dict) else {"name": section}
    name = whole.get("name")
    if not (isinstance(name, str) and name.lower().endswith(PROGRAMS)):
        return section
    return {**whole, "name": "exported", "options": {**(whole.get("options") or {}), "path": name}}


def _split_options(section: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """Every key that is none of `keys` becomes an option."""
    given = section.get("options") or {}
    if not isinstance(given, dict):  # as it is: the check of types says what is wrong with it
        return {k: v for k, v in section.items() if k in keys} | {"options": given}
    options = {k: v for k, v in section.items() if k not in keys}
    kept = {k: v for k, v in section.items() if k in keys}
    return {**kept, "options": {**given, **options}}


def _gather_task(tree: dict[str, Any]) -> dict[str, Any]:
    """``task: depth`` means ``task: {name: depth}``."""
    task = tree.get("task")
    if isinstance(task, str):
        return {**tree, "task": {"name": task}}
    return {**tree, "task": _split_options(task, _TASK_KEYS)} if isinstance(task, dict) else tree


def _gather_terms(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """Keys under distill that are no settings of its own become terms."""
    distill = tree.get("distill")
    if not isinstance(distill, dict):
        return tree
    settings = {k: v for k, v in distill.items() if k in _DISTILL_KEYS and k != "terms"}
    given = distill.get("terms") or {}
    if not isinstance(given, dict):
        return {**tree, "distill": {**settings, "terms": given}}
    terms: dict[str, Any] = dict(given)
    for name, term in distill.items():
        if name in _DISTILL_KEYS or term is None:  # `pair_wise: null` switches a term off
            continue
        if not isinstance(term, dict):
            raise UserError(
                f"{where}: distill.{name}: a term is a section with a weight, as in "
                f"distill.{name}.weight: 10; got {term!r}"
            )
        terms[name] = _split_options(term, _TERM_KEYS)
    return {**tree, "distill": {**settings, "terms": terms}}


def _new_spelling(tree: dict[str, Any], section: str) -> str:
    """What to write in place of an old section."""
    task = tree.get("task") or Task().name
    written = task if isinstance(task, dict) else {"name": task}
    owner = _OLD_SECTIONS[section]
    given = tree[section]
    if not isinstance(given, dict) or not given:
        return (
            f"{section}: there is no such section; the settings of a task stand in its own, as in "
            f"task: {{name: {owner}}}: leave it out"
        )
    key = f"{section}.{next(iter(given))}" if len(given) == 1 else section
    if written.get("name", Task().name) != owner:
        return (
            f"{key}: the section {section} is of the task {owner}; the task here is "
            f"{written.get('name', Task().name)}: leave it out"
        )
    # The loss of segmentation was loss.name.
    moved = {"loss" if (section, k) == ("loss", "name") else k: v for k, v in given.items()}
    whole = {"name": owner, **written, **moved}
    words = " ".join(f"--task.{k} {_word(v)}" for k, v in moved.items())
    return f"{key}: the settings of a task now stand in its own section: write task: {_flow(whole)}, or {words}"


def _flow(value: Any) -> str:
    """YAML on one line."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    text = _flow(value)
    return f"'{text}'" if set(text) & set(" []{}") else text
