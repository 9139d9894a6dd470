"""``densekd ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from densekd.cli.arguments import Recipe, parse, read_recipe, split_overrides
from densekd.errors import UserError
from densekd.workflows.recipe import run_folder


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def ablate(
        config: Recipe,
        over: str | None = None,
        seeds: int = 1,
        jobs: int | None = None,
        name: str | None = None,
        out: Path = Path("runs"),
        device: str = "auto",
        note: str | None = None,
        quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Train the student alone, then +Pi, +Pi+Pa, +Pi+Pa+Ho on one budget; write a table and a page.

        With --over the rows are the values of one setting instead. The same command goes on where it was stopped.
        Settings can be given as --section.key VALUE.

        Args:
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
            over: KEY=value,value,..., e.g. distill.pair_wise.granularity=1,2,4.
            seeds: runs a row; from 2 on the table has mean ± std.
            jobs: runs side by side; by default one a CPU core, or one on a GPU.
            name: the folder under --out; by default made of the recipe's name.
            out: where run folders are made.
            device: auto, cpu, cuda, cuda:N or mps.
            note: stands for the setting note; it stands beside every score.
            quiet: print only the table.
        """
        settings = read_recipe(config, overrides, note=note)
        if seeds < 1 or (jobs is not None and jobs < 1):
            raise UserError(f"--seeds {seeds} --jobs {jobs}: both must be at least 1")
        folder = run_folder(out, name, config, "ablate")
        from densekd.workflows.ablate import ablate as run_ablation
        from densekd.workflows.report import try_report

        status, table = run_ablation(
            settings, folder=folder, seeds=seeds, over=over, jobs=jobs, device=device, quiet=quiet
        )
        print(f"\n{table}\ntable     {folder / 'table.md'}")
        if status:
            print("stopped before all rows were run; the same command goes on")
        else:
            print(try_report(folder, device=device))
        return status

    return parse(ablate, "ablate", own)
