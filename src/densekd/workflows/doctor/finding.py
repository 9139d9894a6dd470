"""What the doctor says of one thing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

LEVELS = ("ok", "note", "warning", "error")
SETTING = re.compile(r"(?:model|teacher|data|distill|optim|train|evaluate|task)(?:\.\w+)+")


@dataclass(frozen=True)
class Finding:
    """One line of the checklist.

    Attributes:
        level: ``"ok"``; ``"note"``: good to know; ``"warning"``: it will run, but is unlikely to be meant;
            ``"error"``: it would stop or spoil the run.
        area: the heading under which it stands.
        what: what was found, with what was measured.
        advice: what to do; empty where there is nothing to do.
        setting: the dotted setting that it is about; empty where there is none.
        numbers: what was measured, as plain numbers, for JSON.
    """

    level: str
    area: str
    what: str
    advice: str = ""
    setting: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.level in LEVELS

    def __str__(self) -> str:
        text = f"{self.what}. {self.advice}" if self.advice else self.what
        known = self.level == "ok" or not self.setting or self.setting in text
        return text if known else f"{text} [{self.setting}]"


def failed(area: str, error: BaseException) -> Finding:
    """An exception of a check: what a run would end with."""
    text = str(error) or type(error).__name__
    found = SETTING.match(text)
    return Finding("error", area, text, setting=found[0] if found else "")


def exit_status(findings: Iterable[Finding]) -> int:
    """1 where there is an error, else 0."""
    return int(any(finding.level == "error" for finding in findings))
