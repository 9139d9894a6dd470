"""``densekd distill``: `train` with the teacher's terms."""

from __future__ import annotations

from densekd.cli import train


def command(arguments: list[str]) -> int:
    return train.command(arguments, "distill")
