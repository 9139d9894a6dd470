"""``densekd report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from densekd.cli.arguments import parse, split_overrides

Runs = Annotated[tyro.conf.Positional[list[Path]], tyro.conf.arg(metavar="RUN...")]


def command(arguments: list[str]) -> int:
    own, settings = split_overrides(arguments)

    def report(
        runs: Runs,
        /,
        out: Path | None = None,
        images: int | None = None,
        no_pictures: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "auto",
    ) -> int:
        """Write one self-contained page of runs: scores, curves, images, confusion, calibration, cost, settings.

        RUN is the folder of train or distill; give several to compare them (teacher, student alone, distilled). The
        folder of an ablation or a demo stands for all its runs. Runs that differ in their seed alone are one row. Where
        the data is at another place than it was: --data.root FOLDER.

        Args:
            runs: folders of runs, or one of an ablation or a demo.
            out: by default report.html in RUN, for several in the current folder. An older report is replaced.
            images: ask the networks about the first N validation images only.
            no_pictures: ask no network: scores, curves and settings alone, in a second.
            device: auto, cpu, cuda, cuda:N or mps.
        """
        from densekd.workflows.report import report as write

        made = write(
            runs,
            out,
            images=images,
            pictures=not no_pictures,
            settings=settings,
            device=device,
        )
        if made.without and not no_pictures:
            print(f"without pictures: {made.without}")
        print(f"{made.path} ({made.bytes / 1e6:.2f} MB)")
        return 0

    return parse(report, "report", own)
