"""The ranges that settings have, and what an annotation says of a value, in a user's words.

The limits are annotated-types' own, which pydantic checks; a `Rule` says what those cannot.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt
from pydantic_core import PydanticCustomError, ValidationError, core_schema
from typing_extensions import Doc


@dataclass(frozen=True)
class Rule:
    """What a whole value must be.

    Args:
        words: as they follow "must be".
        holds: whether a value that already has its type is so.
        of_several_types: the value may have one of several types, and `words` say which.
    """

    words: str
    holds: Callable[[Any], bool]
    of_several_types: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        if self.of_several_types:
            return core_schema.no_info_wrap_validator_function(self._check_type, handler(source))
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check_type(self, value: Any, as_one_of_them: Callable[[Any], Any]) -> Any:
        try:
            typed = as_one_of_them(value)
        except ValidationError as error:
            raise PydanticCustomError("rule", "must be {words}", {"words": self.words}) from error
        return self._check(typed)

    def _check(self, value: Any) -> Any:
        # A null passes: whether a setting may be null is its type's matter.
        if value is None or self.holds(value):
            return value
        raise PydanticCustomError("rule", "must be {words}", {"words": self.words})


Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Between = Annotated[float, Interval(gt=0, lt=1)]
Betas = Annotated[
    tuple[float, float], Rule("two numbers in [0, 1)", lambda v: min(v) >= 0 and max(v) < 1)
]
Size = Annotated[tuple[int, int], Rule("two positive whole numbers", lambda v: min(v) >= 1)]
Scales = Annotated[
    list[float], Rule("one or more positive numbers", lambda v: bool(v) and min(v) > 0)
]
LowHigh = Annotated[
    list[float],
    Rule("[low, high] with 0 < low <= high", lambda v: len(v) == 2 and 0 < v[0] <= v[1]),
]

TermWeight = Annotated[
    float | list[tuple[int, float]],
    Rule(
        "0 or more, or points [[step, weight], ...] whose steps rise, as in [[0, 0], [200, 3]]",
        lambda v: _is_weight(v),
        of_several_types=True,
    ),
]


def _is_weight(value: float | list[tuple[int, float]]) -> bool:
    if not isinstance(value, list):
        return value >= 0
    steps = [step for step, _ in value]
    return (
        bool(value)
        and steps == sorted(set(steps))
        and steps[0] >= 0
        and min(w for _, w in value) >= 0
    )


def parts_of(annotation: Any) -> tuple[list[Any], list[Any]]:
    """(the plain types of an annotation, all that `Annotated` adds to it); unions are taken apart."""
    kinds, added, todo = [], [], [annotation]
    while todo:
        first = todo.pop(0)
        origin = typing.get_origin(first)
        if origin is Annotated:
            for extra in first.__metadata__:
                added += list(extra) if isinstance(extra, GroupedMetadata) else [extra]
            todo.insert(0, first.__origin__)
        elif origin in (typing.Union, types.UnionType):
            todo = [*typing.get_args(first), *todo]
        else:
            kinds.append(first)
    return kinds, added


def range_text(annotation: Any) -> str:
    """``at least 1``, ``in [0, 1)``, a rule's words; empty where a value may be anything of its type."""
    added = parts_of(annotation)[1]
    for extra in added:
        if isinstance(extra, Rule):
            return extra.words
    low = next((limit for limit in added if isinstance(limit, (Ge, Gt))), None)
    high = next((limit for limit in added if isinstance(limit, (Le, Lt))), None)
    start = low.ge if isinstance(low, Ge) else low and low.gt
    end = high.le if isinstance(high, Le) else high and high.lt
    if low is not None and high is not None:
        if isinstance(low, Gt) and isinstance(high, Lt):
            return f"between {start} and {end}"
        brackets = "[" if isinstance(low, Ge) else "(", "]" if isinstance(high, Le) else ")"
        return f"in {brackets[0]}{start}, {end}{brackets[1]}"
    if low is not None:
        if isinstance(low, Gt):
            return f"above {start}"
        return "0 or more" if start == 0 else f"at least {start}"
    if high is not None:
        return f"at most {end}" if isinstance(high, Le) else f"below {end}"
    return ""


def doc_text(annotation: Any) -> str:
    """The help of a setting; empty where its annotation has none."""
    added = parts_of(annotation)[1]
    return next((extra.documentation for extra in added if isinstance(extra, Doc)), "")


def annotation_at(annotation: Any, path: Sequence[str | int]) -> Any:
    """The annotation that a path of keys and indices leads to from `annotation`; None where it leads nowhere."""
    for key in path:
        for kind in parts_of(annotation)[0]:
            inner = _inside(kind, key)
            if inner is not None:
                annotation = inner
                break
        else:
            return None
    return annotation


def _inside(kind: Any, key: str | int) -> Any:
    if is_dataclass(kind):
        return typing.get_type_hints(kind, include_extras=True).get(str(key))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if not isinstance(origin, type) or not arguments:
        return None
    if issubclass(origin, Mapping):
        return arguments[-1]
    if issubclass(origin, tuple) and arguments[-1] is not ...:
        return arguments[key] if isinstance(key, int) and key < len(arguments) else None
    return arguments[0] if issubclass(origin, Sequence) else None


def keys_of(annotation: Any) -> list[str]:
    """The keys of the section that an annotation stands for; empty where it is none."""
    for kind in parts_of(annotation)[0]:
        if is_dataclass(kind):
            return [f.name for f in fields(kind)]
    return []
