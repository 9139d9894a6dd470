"""``densekd tune``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from densekd.cli.arguments import Recipe, command_line, parse, read_recipe, split_overrides
from densekd.errors import UserError


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def tune(
        config: Recipe,
        rounds: int = 10,
        device: str = "auto",
        made_up: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        int8: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        tolerance: float = 1e-3,
        output: Path | None = None,
    ) -> int:
        """Find the fastest form of a recipe's training step on this machine, by timing real steps.

        Memory formats of teacher and student, the teacher's batch and runtime (ONNX Runtime, OpenVINO, where they are
        installed), bf16 where the machine has it, and torch.compile on request are tried one after another on top of
        what was kept. A form is kept where the step is surely shorter and its losses and gradients agree with the
        recipe's within the tolerance. What is kept is printed as settings, and remembered: runs of the recipe with
        train.auto take it. Nothing is trained. Settings can be given as --section.key VALUE.

        Args:
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
            rounds: steps of each of two forms that are timed in turns; fewer where a step takes many seconds.
            device: auto, cpu, cuda, cuda:N or mps.
            made_up: random images of the crop's size, where the data is not at hand.
            compile: try torch.compile too; it takes a minute or more a network.
            int8: try the teacher in int8 too (teacher.runtime); it needs a tolerance of about 0.2.
            tolerance: what losses and gradients may differ by, relative. bf16 needs about 0.1; a choice with another
                tolerance than the default is shown and not remembered.
            output: JSON file for the numbers; must not exist.
        """
        settings = read_recipe(config, overrides)
        if rounds < 3:
            raise UserError(f"--rounds {rounds}: must be at least 3")
        if not 0 < tolerance < 1:
            raise UserError(f"--tolerance {tolerance}: expected a number between 0 and 1")
        from densekd.workflows import tune as workflow
        from densekd.workflows.bench import check_output, write
        from densekd.workflows.tune_text import as_text

        if output is not None:
            check_output(output)
        result = workflow.tune(
            settings,
            rounds=rounds,
            device=device,
            made_up=made_up,
            compiles=compile,
            int8=int8,
            tolerance=tolerance,
            progress=lambda line: print(f"trying {line}", file=sys.stderr),
        )
        print(as_text(result))
        if output is not None:
            write({"command": command_line(), **result}, output)
            print(f"written to {output}")
        return 0

    return parse(tune, "tune", arguments=own)
