"""``densekd doctor``."""

from __future__ import annotations

import json as json_text
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from densekd.cli.arguments import parse, read_recipe, split_overrides
from densekd.errors import UserError

if TYPE_CHECKING:
    from densekd.workflows.doctor.finding import Finding

MaybeRecipe = Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="RECIPE")]
MARKS = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("warning", "yellow"),
    "error": ("ERROR", "bold red"),
}


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def doctor(
        config: MaybeRecipe = None,
        device: str = "auto",
        images: int = 8,
        alone: Path | None = None,
        out: Path = Path("runs"),
        json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Say what would stop or spoil a run, before it is started: this machine, and what a recipe builds on it.

        Without a recipe: versions, extras, devices, cores, memory, disk, and whether bf16 is real. With one, all is
        built as for a run: data, weights, what both networks see and score, taps, each term's value and gradient, time,
        memory, disk. Nothing is trained or written. Settings can be given as --section.key VALUE.

        Ends with status 1 where an error would stop or spoil a run, else 0; warnings and notes do not count.

        Args:
            config: a YAML file, or the name of a shipped recipe (densekd list configs); none: the machine alone.
            device: auto, cpu, cuda, cuda:N or mps.
            images: validation images that the teacher (and a student with weights) is scored on.
            alone: the folder of a run that trained the student alone; is the teacher above it?
            out: where run folders would be made.
            json: print JSON alone.
        """
        if images < 1:
            raise UserError(f"--images {images}: must be at least 1")
        if config is None and overrides:
            raise UserError(
                f"--{next(iter(overrides))} is a setting of a recipe, and none is given; name the recipe first"
            )
        # torchvision may not load: whatever needs it is imported once that has been looked at.
        from densekd.engine.launch import started
        from densekd.workflows.doctor.finding import exit_status
        from densekd.workflows.doctor.machine import machine_findings

        with shown_on_terminal() as say:
            with started(device) as process:
                findings = machine_findings(process.device)
            if config is not None and not exit_status(findings):
                settings = read_recipe(config, overrides)
                from densekd.workflows.doctor.examine import examine

                findings += examine(
                    settings, device=device, images=images, alone=alone, out=out, say=say
                )
        status = exit_status(findings)
        if json:
            print(as_json(config, findings, status))
        else:
            show(findings, Console())
        return status

    return parse(doctor, "doctor", own)


@contextmanager
def shown_on_terminal() -> Iterator[Callable[[str], None]]:
    """Gives a function that shows what is looked at, where a person waits for it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda part: None
        return
    with console.status("looking at this machine") as status:
        yield lambda part: status.update(f"looking at the {part}")


def as_json(recipe: str | None, findings: list[Finding], status: int) -> str:
    from densekd.engine.log import finite

    result: dict[str, Any] = {
        "recipe": recipe,
        "status": status,
        "counts": {level: sum(f.level == level for f in findings) for level in MARKS},
        "findings": [asdict(finding) for finding in findings],
    }
    return json_text.dumps(finite(result), indent=2, allow_nan=False)


def show(findings: list[Finding], console: Console) -> None:
    """A table an area on a terminal; else a line a finding."""
    areas = dict.fromkeys(finding.area for finding in findings)
    for area in areas:
        some = [finding for finding in findings if finding.area == area]
        if not console.is_terminal:
            for finding in some:
                print(f"{finding.level:<8} {area}: {finding}")
            continue
        table = Table(box=None, show_header=False, padding=(0, 1), title=area, title_justify="left",
                      title_style="bold")  # fmt: skip
        table.add_column(width=7, no_wrap=True)
        table.add_column(overflow="fold")
        for finding in some:
            word, style = MARKS[finding.level]
            text = Text(finding.what)
            if finding.advice:
                text.append(f"\n→ {finding.advice}", style="dim")
            if finding.level != "ok" and finding.setting and finding.setting not in text.plain:
                text.append(f" [{finding.setting}]", style="dim")
            table.add_row(Text(word, style=style), text)
        console.print(table)
    counts = {level: sum(f.level == level for f in findings) for level in MARKS}
    errors, warnings = counts["error"], counts["warning"]
    last = (
        f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}, "
        f"{counts['note']} note{'' if counts['note'] == 1 else 's'}"
    )
    console.print(last, highlight=False)
