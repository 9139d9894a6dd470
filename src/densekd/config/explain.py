"""What pydantic finds wrong with settings, in a user's words."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from densekd.config.ranges import annotation_at, keys_of, parts_of, range_text
from densekd.ops.names import did_you_mean

# pydantic's error types; the rest keep pydantic's message.
_EXPECTED = {
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "sequence_str": "expected a list",
    "dict_type": "expected a section (key: value)",
    "mapping_type": "expected a section (key: value)",
    "dataclass_type": "expected a section (key: value)",
}
_WORD = re.compile(r"[\w.-]+")
_OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def user_key(*parts: Any) -> str:
    """A dotted key as the user writes it."""
    dotted = ".".join(str(part) for part in parts)
    return dotted.replace("distill.terms.", "distill.").replace("task.options.", "task.")


def explain(error: ValidationError, kind: Any, *above: str) -> list[str]:
    """A line for everything that is wrong: key, what was expected, what was given, a near match.

    Args:
        kind: what the value was to be: a dataclass, or the annotation of one setting.
        above: keys of the sections that the value stands in.
    """
    lines = []
    for item in error.errors():
        path = item["loc"]
        key = user_key(*above, *path)
        if item["type"] == "unexpected_keyword_argument":
            possible = keys_of(annotation_at(kind, path[:-1]))
            lines.append(f"{key}: unknown key; {_meant(key, path[-1], possible)}")
        elif item["type"] in ("missing", "missing_argument"):
            lines.append(f"{key}: missing; this setting has no default")
        else:
            said = _said(item, annotation_at(kind, path))
            lines.append(f"{key}: {said}; got {item['input']!r}")
    return lines


def _meant(key: str, name: Any, possible: Collection[str]) -> str:
    """What an unknown key may have been meant for."""
    if key == "student":
        return "the network that is trained is the section model"
    said = did_you_mean(name, possible)
    section = key.rpartition(".")[0]
    if "options" in possible and "dataset" in possible:
        said += f" (an argument of the data set's reader stands in {section}.options)"
    return said


def _said(item: Any, annotation: Any) -> str:
    if item["type"] in _OUT_OF_RANGE:
        if not isinstance(item["input"], bool):
            return f"must be {range_text(annotation)}"
        return f"expected {'a whole number' if int in parts_of(annotation)[0] else 'a number'}"
    if item["type"] == "is_instance_of" and item["ctx"]["class"] == "Sequence":
        return "expected a list"
    text = item["input"]
    if item["type"] == "list_type" and isinstance(text, str) and _WORD.fullmatch(text):
        return f"expected a list, such as [{text}]"
    return _EXPECTED.get(item["type"], item["msg"])


def stray_booleans(given: Any, got: Any, *path: str | int) -> list[str]:
    """A line for every true or false that became a number: ``train.steps: true`` does not mean one step.

    Args:
        given, got: a value as the user wrote it, and as it was read.
        path: the keys that lead to it.
    """
    if isinstance(given, bool):
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            return []
        kind = "a whole number" if isinstance(got, int) else "a number"
        return [f"{user_key(*path)}: expected {kind}; got {given}"]
    if isinstance(given, dict):
        pairs = [
            (k, v, got[k] if isinstance(got, dict) else getattr(got, k)) for k, v in given.items()
        ]
    elif isinstance(given, (list, tuple)):
        pairs = [(i, *pair) for i, pair in enumerate(zip(given, got, strict=True))]
    else:
        return []
    return [line for name, old, new in pairs for line in stray_booleans(old, new, *path, name)]
