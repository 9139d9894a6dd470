"""The arguments of the pair-wise term: checked, and resolved against a convention's preset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from densekd.losses._checks import check_choice

CONVENTIONS = ("paper", "authors", "authors2019", "cirkd")
POOLINGS = ("avg", "max")
AFFINITIES = ("cosine", "sigmoid", "softmax")

Range = int | float | tuple[int, int] | list[int] | None


@dataclass(frozen=True)
class Form:
    """The arguments of the term, checked when made."""

    granularity: int | float = 2
    pooling: str = "avg"
    connection_range: Range = None
    affinity: str = "cosine"
    norm_gradient: bool = True

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("affinity", self.affinity, AFFINITIES)
        g = self.granularity
        whole = isinstance(g, int) and not isinstance(g, bool) and g >= 1
        if not whole and not (isinstance(g, float) and 0 < g <= 1):
            raise ValueError(
                f"granularity is {g!r}; give a whole number of pixels from 1 up, or a float in (0, 1], "
                "the fraction of the map's side"
            )
        _check_range(self.connection_range)
        if isinstance(self.connection_range, list):
            object.__setattr__(self, "connection_range", tuple(self.connection_range))


def _check_range(value: Range) -> None:
    if value is None or (isinstance(value, float) and 0 < value <= 1):
        return
    sides = value if isinstance(value, tuple | list) else (value, value)
    odd = len(sides) == 2 and all(isinstance(s, int) and s >= 1 and s % 2 == 1 for s in sides)
    if not odd or max(sides) < 3:
        raise ValueError(
            f"connection_range is {value!r}; give None (all nodes), an odd window of at least 3 nodes "
            "(int, or height and width), or a float in (0, 1], the fraction of the nodes' grid"
        )


# What a convention fixes. A preset overrides the arguments it names.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Granularity stays free: the authors' 0.5 (2×2 or 3×3 nodes) is one setting of theirs.
    "authors": {
        "pooling": "max",
        "connection_range": None,
        "affinity": "cosine",
        "norm_gradient": False,
    },
    # Affinity stays free: their three variants.
    "authors2019": {"granularity": 1, "connection_range": None, "norm_gradient": True},
    "cirkd": {
        "granularity": 2,
        "pooling": "max",
        "connection_range": None,
        "affinity": "cosine",
        "norm_gradient": True,
    },
}


def resolve(form: Form, convention: str) -> Form:
    """The preset's values over `form`; a value that is neither the default nor the preset's is a conflict."""
    check_choice("convention", convention, CONVENTIONS)
    default = Form()
    for name, fixed in _PRESETS[convention].items():
        given = getattr(form, name)
        if given not in (getattr(default, name), fixed):
            raise ValueError(
                f"{name} is {given!r}, but convention {convention!r} fixes it to {fixed!r}: leave {name} out, "
                "or take convention='paper', where it is free"
            )
    return replace(form, **_PRESETS[convention])


def window_of(connection_range: Range, grid: torch.Size) -> tuple[int, int] | None:
    """The window's height and width in nodes, both odd; None where it connects all nodes."""
    if connection_range is None or connection_range == 1.0:
        return None
    p, q = grid
    if isinstance(connection_range, float):
        # To the nearest odd number. A window of one node would compare each node only with itself.
        window = tuple(max(3, 2 * round((connection_range * side - 1) / 2) + 1) for side in (p, q))
    elif isinstance(connection_range, int):
        window = (connection_range, connection_range)
    else:
        window = tuple(connection_range)
    # What reaches over the whole grid from everywhere need not be larger.
    window = (min(window[0], 2 * p - 1), min(window[1], 2 * q - 1))
    return None if window == (2 * p - 1, 2 * q - 1) else window
