"""A recipe as a tree of plain values: from YAML text, with dotted settings of the command line set in it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from densekd.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-2`` as text; every user means a number. Doubled keys are errors, not overrides."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return {str(k): v for k, v in loader.construct_mapping(node, deep=True).items()}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error


def read_overrides(arguments: list[str]) -> dict[str, Any]:
    """``["--data.root", "x", "--seed=3"]`` -> ``{"data.root": "x", "seed": 3}``; values are YAML."""
    result: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(
                f"unexpected argument {word!r}; settings are given as --section.key value"
            )
        key, equals, text = word[2:].partition("=")
        if not equals:
            # A negative number is a value; another option is not.
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} needs a value, as in --{key} VALUE")
            text = rest.pop(0)
        result[key.replace("-", "_")] = parse_yaml(text, f"--{key}")
    return result


def apply_overrides(tree: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Set dotted keys in place. A section that is absent or null is made; ``task: NAME`` becomes a section."""
    for dotted, value in overrides.items():
        *sections, last = dotted.split(".")
        node = tree
        for section in sections:
            if node.get(section) is None:
                node[section] = {}
            if node is tree and section == "task" and isinstance(node[section], str):
                node[section] = {"name": node[section]}
            if not isinstance(node[section], dict):
                raise UserError(f"--{dotted}: {section!r} is {node[section]!r}, not a section")
            node = node[section]
        node[last] = value
