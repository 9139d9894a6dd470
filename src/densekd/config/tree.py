"""A recipe as a tree of plain values: from YAML text, with dotted settings of the command line set in it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from densekd.errors import UserError

MOST_CHARACTERS = 1_000_000  # of a recipe's text
MOST_VALUES = 100_000  # of a recipe, when every alias is written out


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-2`` as text; every user means a number. Doubled keys are errors, not overrides."""

    def get_single_node(self) -> yaml.Node | None:
        """The document's node, of a size that can be worked with."""
        node = super().get_single_node()
        if node is not None:
            _written_out(node, {}, set())
        return node


def _written_out(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for: nine lines of aliases to aliases can stand for a thousand million."""
    if id(node) in above:
        raise yaml.constructor.ConstructorError(
            None, None, "an alias stands within what it is an alias of", node.start_mark
        )
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        above.add(id(node))
        known[id(node)] = 1 + sum(_written_out(part, known, above) for part in parts)
        above.remove(id(node))
        if known[id(node)] > MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"it has more than {MOST_VALUES:,} values when its aliases are written out; expected a recipe",
                node.start_mark,
            )
    return known[id(node)]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (list, dict, set)):
            raise yaml.constructor.ConstructorError(
                None, None, f"a key is {key!r}; expected a name", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    return {str(k): v for k, v in loader.construct_mapping(node, deep=True).items()}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_yaml(text: str, source: str) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"{source}: {len(text):,} characters; expected a recipe of at most {MOST_CHARACTERS:,}"
        )
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except (TypeError, OverflowError, AttributeError) as error:
        raise UserError(f"{source}: holds a value that cannot be read: {error}") from error


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


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
