"""``densekd train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from densekd.cli.arguments import (
    Recipe,
    command_line,
    parse,
    read_recipe,
    split_overrides,
)
from densekd.workflows.recipe import run_folder

SETTINGS = """
Any setting of the recipe can be given too, as --section.key VALUE (--data.root FOLDER, --optim.lr 0.02,
--data.crop '[256, 256]', --train.steps 500); `densekd config show RECIPE` prints them, docs/config.md explains them.
The run's folder OUT/NAME gets config.yaml, metrics.jsonl, result.json and checkpoints/."""

SUMMARY = {
    "train": "Train the recipe's model alone, with labels only (a teacher section is left unused).",
    "distill": "Train the recipe's model as a student: labels, and terms that compare it with the teacher.",
}


def command(arguments: list[str], verb: str = "train") -> int:
    own, overrides = split_overrides(arguments)

    def train(
        config: Recipe,
        name: str | None = None,
        out: Path = Path("runs"),
        resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "auto",
        seed: int | None = None,
        note: str | None = None,
        deterministic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Replaced by the description given to `parse`.

        Args:
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
            name: the run's folder under --out; by default made of the recipe's name.
            out: where run folders are made.
            resume: go on from the last checkpoint of the run's folder.
            device: auto, cpu, cuda, cuda:N or mps.
            seed: stands for the setting seed.
            note: stands for the setting note; it stands beside every score.
            deterministic: stands for the setting train.deterministic.
            quiet: print only what came out.
        """
        settings = read_recipe(
            config,
            overrides,
            seed=seed,
            note=note,
            train__deterministic=True if deterministic else None,
        )
        folder = run_folder(out, name, config, verb)
        from densekd.workflows.run import run

        return run(
            settings,
            distil=verb == "distill",
            folder=folder,
            command=command_line(),
            resume=resume,
            device=device,
            quiet=quiet,
        )

    return parse(train, verb, own, SUMMARY[verb] + SETTINGS)
