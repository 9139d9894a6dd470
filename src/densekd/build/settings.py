"""A recipe's names for the arguments of functions: rooms below name arguments, a command's user has settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from densekd.errors import UserError


def in_settings(text: str, names: Mapping[str, str], section: str = "") -> str:
    """A message of a room below, with each argument that it names in backticks replaced by its setting.

    >>> in_settings("check `root`", {"root": "data.root"})
    'check data.root'
    """
    text = re.sub(r"`([^`]+)`", lambda found: names.get(found[1], found[0]), text)
    return f"{section}: {text}" if section else text


@contextmanager
def naming_settings(names: Mapping[str, str], section: str = "") -> Iterator[None]:
    """User errors raised within, and all that they carry, name settings where they name arguments.

    Args:
        names: argument -> setting.
        section: the setting or section that errors begin with, for messages that name no argument.
    """
    try:
        yield
    except UserError as error:
        error.args = (in_settings(str(error), names, section),)
        raise
