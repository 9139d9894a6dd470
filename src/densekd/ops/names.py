"""Names and sizes as messages show them: the nearest of the possible names, a long list cut short, bytes for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

SHOWN = 5  # how many of many things a message lists


def teacher_section(name: str | None) -> str:
    """The section of a recipe that the teacher of this name stands in; without a name, that of the only one."""
    return f"teachers.{name}" if name else "teacher"


def nearest(given: object, possible: Iterable[str], count: int = 1) -> list[str]:
    """The names that `given` may have been meant for, the best first; empty where none resembles it.

    A name that differs by a letter or two comes before one that `given` is the beginning of, and that before the rest.
    """
    names, word = list(possible), str(given)
    near = difflib.get_close_matches(word, names, len(names) or 1, 0.4)
    begun = [name for name in sorted(names, key=len) if len(word) > 2 and name.startswith(word)]
    typos = difflib.get_close_matches(word, names, count, 0.9)
    return list(dict.fromkeys([*typos, *begun, *near]))[:count]


def did_you_mean(given: object, possible: Iterable[str]) -> str:
    """``did you mean 'cityscapes'?``, or ``possible: a, b, c`` where no name resembles `given`."""
    names = sorted(possible)
    near = nearest(given, names)
    return f"did you mean {near[0]!r}?" if near else f"possible: {', '.join(names) or 'none'}"


def nearest_few(given: object, possible: Iterable[str], count: int = 3) -> str:
    """``did you mean 'a', 'b' or 'c'?``, or all that is possible where no name resembles `given`."""
    names = sorted(possible)
    near = [repr(name) for name in nearest(given, names, count)]
    if not near:
        return f"possible: {', '.join(names) or 'none'}"
    return f"did you mean {' or '.join([', '.join(near[:-1]), near[-1]] if near[1:] else near)}?"


def first_few(things: Sequence[object], shown: int = SHOWN) -> str:
    """``a, b, c, and 4 more``."""
    more = f", and {len(things) - shown} more" if len(things) > shown else ""
    return ", ".join(printable(str(thing)) for thing in things[:shown]) + more


def printable(text: str, kept: str = "") -> str:
    """`text` with control characters as escapes, so that a terminal shows and does not obey them.

    Args:
        kept: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )


def bytes_text(count: float) -> str:
    """``1.5 GB``, in powers of 1000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"
