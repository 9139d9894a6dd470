"""YAML and dotted overrides -> a checked `Config`. Imports no torch."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from densekd.config.schema import Config, Distill, Term
from densekd.errors import UserError
from densekd.ops.names import did_you_mean, nearest

_ADAPTER = TypeAdapter(Config)
_DISTILL_KEYS = {f.name for f in fields(Distill)}
_TERM_KEYS = {f.name for f in fields(Term)}


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
    """Set dotted keys in place. A section that is absent or null is made."""
    for dotted, value in overrides.items():
        *sections, last = dotted.split(".")
        node = tree
        for section in sections:
            if node.get(section) is None:
                node[section] = {}
            if not isinstance(node[section], dict):
                raise UserError(f"--{dotted}: {section!r} is {node[section]!r}, not a section")
            node = node[section]
        node[last] = value


def _gather_terms(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """User form -> schema form: keys under distill that are no settings become terms, and so for their options."""
    distill = tree.get("distill")
    if not isinstance(distill, dict):
        return tree
    settings = {k: v for k, v in distill.items() if k in _DISTILL_KEYS and k != "terms"}
    terms: dict[str, Any] = dict(distill.get("terms") or {})
    for name, term in distill.items():
        if name in _DISTILL_KEYS or term is None:  # `pair_wise: null` switches a term off
            continue
        if not isinstance(term, dict):
            raise UserError(
                f"{where}: distill.{name}: a term is a section with a weight, as in "
                f"distill.{name}.weight: 10; got {term!r}"
            )
        options = {k: v for k, v in term.items() if k not in _TERM_KEYS}
        term = {k: v for k, v in term.items() if k in _TERM_KEYS}
        term["options"] = {**(term.get("options") or {}), **options}
        terms[name] = term
    return {**tree, "distill": {**settings, "terms": terms}}


# pydantic's error types in a user's words; the rest keep pydantic's message.
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
    "dict_type": "expected a section (key: value)",
    "dataclass_type": "expected a section (key: value)",
}


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        key = ".".join(location).replace("distill.terms.", "distill.")
        if item["type"] == "unexpected_keyword_argument":
            possible = _keys_at(location[:-1])
            lines.append(f"{where}: {key}: unknown key; {did_you_mean(location[-1], possible)}")
        elif item["type"] in ("missing", "missing_argument"):
            lines.append(f"{where}: {key}: missing; this setting has no default")
        else:
            said = _EXPECTED.get(item["type"], item["msg"])
            lines.append(f"{where}: {key}: {said}; got {item['input']!r}")
    return "\n".join(lines)


def _keys_at(location: list[str]) -> list[str]:
    """Field names of the dataclass a path leads to."""
    kind: Any = Config
    for part in location:
        hints = typing.get_type_hints(kind) if hasattr(kind, "__dataclass_fields__") else {}
        kind = hints.get(part, Term if part not in hints else None)
        for choice in typing.get_args(kind):
            if hasattr(choice, "__dataclass_fields__"):
                kind = choice
    if not hasattr(kind, "__dataclass_fields__"):
        return []
    return [f.name for f in fields(kind)]


def setting_names() -> list[str]:
    """Dotted name of every setting that lies in a section: ``["model.name", ..., "train.steps", ...]``."""
    sections = {f.name: _keys_at([f.name]) for f in fields(Config)}
    return [f"{section}.{key}" for section, keys in sections.items() for key in keys]


def make_config(tree: dict[str, Any], where: str) -> Config:
    """A nested dict in user form -> `Config`; UserError names `where`, the key, the reason and a near match."""
    if not isinstance(tree, dict):
        raise UserError(f"{where}: a config is a mapping of sections, got {type(tree).__name__}")
    tree = _gather_terms(tree, where)
    try:
        config = _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise UserError(_explain(error, where)) from None
    if stray := _stray_booleans(tree, config, where):
        raise UserError("\n".join(stray))
    _check_values(config, where)
    return config


def _stray_booleans(given: Any, got: Any, where: str, key: str = "") -> list[str]:
    """A line for every true or false that became a number: `train.steps: true` is no one step."""
    if isinstance(given, bool):
        if isinstance(got, bool) or not isinstance(got, (int, float)):
            return []
        kind = "a whole number" if isinstance(got, int) else "a number"
        return [
            f"{where}: {key.replace('distill.terms.', 'distill.')}: expected {kind}; got {given}"
        ]
    if isinstance(given, dict):
        pairs = [
            (k, v, got[k] if isinstance(got, dict) else getattr(got, k)) for k, v in given.items()
        ]
    elif isinstance(given, (list, tuple)):
        pairs = [(i, *pair) for i, pair in enumerate(zip(given, got, strict=True))]
    else:
        return []
    return [
        line
        for name, old, new in pairs
        for line in _stray_booleans(old, new, where, f"{key}.{name}" if key else str(name))
    ]


# What types cannot say: what a value must be, its test, and the settings it holds for. A null passes; whether a
# setting may be null is its type's matter. * is every item of a list or section.
_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    (
        "at least 1",
        lambda v: v >= 1,
        "train.steps train.accumulate train.log_every train.save_every data.batch_size data.augment_epochs "
        "data.short_side data.long_side "
        "evaluate.short_side evaluate.long_side detection.topk_candidates detection.detections_per_image "
        "evaluate.batch_size distill.teacher_cache.top_k distill.holistic.channels model.in_channels "
        "teacher.in_channels teacher.batch_size",
    ),
    (
        "0 or more",
        lambda v: v >= 0,
        "seed depth.bins depth.losses.* train.evaluate_every data.workers data.color_jitter optim.warmup_steps "
        "optim.weight_decay optim.power optim.groups.*.lr_scale optim.groups.*.weight_decay loss.aux_weight "
        "distill.terms.*.weight distill.holistic.weight distill.holistic.penalty "
        "distill.holistic.weight_decay distill.holistic.start_step",
    ),
    (
        "above 0",
        lambda v: v > 0,
        "optim.lr optim.clip distill.holistic.lr distill.teacher_cache.disk_gb depth.min_depth depth.max_depth "
        "data.cache_gb depth.virtual_normal_samples",
    ),
    (
        "in [0, 1]",
        lambda v: 0 <= v <= 1,
        "detection.score_threshold detection.nms_threshold loss.min_kept",
    ),
    (
        "in [0, 1)",
        lambda v: 0 <= v < 1,
        "evaluate.overlap loss.label_smoothing optim.momentum distill.holistic.momentum",
    ),
    (
        "two numbers in [0, 1)",
        lambda v: min(v) >= 0 and max(v) < 1,
        "optim.betas distill.holistic.betas",
    ),
    ("in (0, 1]", lambda v: 0 < v <= 1, "data.cat_max_ratio"),
    ("between 0 and 1", lambda v: 0 < v < 1, "train.ema loss.threshold"),
    ("a probability", lambda v: 0 <= v <= 1, "data.hflip"),
    ("[low, high] with 0 < low <= high", lambda v: len(v) == 2 and 0 < v[0] <= v[1], "data.scale"),
    ("two positive numbers", lambda v: min(v) >= 1, "data.crop evaluate.window"),
    (
        "one or more positive numbers",
        lambda v: len(v) > 0 and min(v) > 0,
        "data.scales evaluate.scales",
    ),
]


def _values(node: Any, parts: list[str], path: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every setting that a key with wildcards names; nothing where a section is null."""
    if node is None:
        return []
    if not parts:
        return [(path.replace("distill.terms.", "distill."), node)]
    first, *rest = parts
    if first != "*":
        steps = [(first, getattr(node, first))]
    else:
        steps = list(node.items() if isinstance(node, dict) else enumerate(node))
    return [
        found
        for name, value in steps
        for found in _values(value, rest, f"{path}.{name}" if path else str(name))
    ]


def _check_values(config: Config, where: str) -> None:
    broken = [
        f"{where}: {key}: must be {rule}; got {got!r}"
        for rule, holds, names in _RULES
        for name in names.split()
        for key, got in _values(config, name.split("."))
        if not holds(got)
    ]
    broken += _foreign_sections(config, where)
    if config.data.cache == "device" and config.task == "detection":
        broken.append(f"{where}: data.cache: device knows no boxes; take disk or ram")
    if config.distill.teacher_cache is not None:
        broken += [
            f"{where}: distill.teacher_cache: needs data.{key}, {why}"
            for key, given, why in (
                (
                    "augment_epochs",
                    config.data.augment_epochs,
                    "else no augmented image is ever seen twice",
                ),
                (
                    "crop",
                    config.data.crop,
                    "else an image's padding depends on what else is in its batch",
                ),
            )
            if given is None
        ]
    loss = config.loss
    if loss.name == "ohem":
        ignored = {
            "class_weights": (loss.class_weights, "null"),
            "label_smoothing": (loss.label_smoothing or None, "0"),
        }
        broken += [
            f"{where}: loss.{key}: must be {unset} with loss.name ohem, which would ignore it; got {got!r}"
            for key, (got, unset) in ignored.items()
            if got is not None
        ]
    if broken:
        raise UserError("\n".join(broken))


# What only one task listens to.
_TASK_SECTIONS = {"loss": "segmentation", "detection": "detection", "depth": "depth"}


def _foreign_sections(config: Config, where: str) -> list[str]:
    """A line for every setting that the recipe's task would silently ignore."""
    lines = []
    for section, task in _TASK_SECTIONS.items():
        given = getattr(config, section)
        if config.task == task or given == type(given)():
            continue
        changed = [f.name for f in fields(given) if getattr(given, f.name) != _default(f)]
        lines.append(
            f"{where}: {section}.{changed[0]}: the section {section} is of the task {task}; the task here is "
            f"{config.task}: leave it out"
        )
    if config.task != "segmentation" and config.data.cat_max_ratio is not None:
        lines.append(
            f"{where}: data.cat_max_ratio: is of class maps; leave it out with {config.task}"
        )
    return lines


def _default(setting: Field) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def load_config(name: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a recipe by path or shipped name, apply dotted overrides, check everything a type can check."""
    path = find_config(name)
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections, got {type(tree).__name__}")
    where = str(path)
    if overrides:
        apply_overrides(tree, overrides)
        where += " with " + " ".join(f"--{key}" for key in overrides)
    return make_config(tree, where)


def to_tree(config: Config) -> dict[str, Any]:
    """Back to the user's form: what `config show` prints and the run folder keeps."""
    tree = asdict(config)
    terms = tree["distill"].pop("terms")
    for name, term in terms.items():
        options = term.pop("options")
        tree["distill"][name] = {**{k: v for k, v in term.items() if v != ""}, **options}
    return _plain(tree)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def dump_config(config: Config) -> str:
    return yaml.safe_dump(to_tree(config), sort_keys=False, default_flow_style=None, width=100)
