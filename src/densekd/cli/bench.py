"""``densekd bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from densekd.cli.arguments import Recipe, command_line, parse, read_recipe, split_overrides
from densekd.errors import UserError


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def bench(
        config: Recipe,
        steps: int = 20,
        device: str = "auto",
        made_up: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        output: Path | None = None,
    ) -> int:
        """Show where a training step of the recipe spends its time on this machine.

        Data wait, teacher, student, supervised loss, each distillation term, backward, optimizer, discriminator;
        images/s, peak memory, and what the step costs over its floor: the teacher's forward, the student's step alone
        and the discriminator. Nothing is trained or written. Settings can be given as --section.key VALUE.

        Args:
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
            steps: that are measured; three more come before.
            device: auto, cpu, cuda, cuda:N or mps.
            made_up: random images of the crop's size, where the data is not at hand.
            output: JSON file for the numbers; must not exist.
        """
        settings = read_recipe(config, overrides)
        if steps < 1:
            raise UserError(f"--steps {steps}: must be at least 1")
        from densekd.workflows import bench as workflow
        from densekd.workflows.bench_text import as_text

        if output is not None:
            workflow.check_output(output)
        result = workflow.bench(settings, steps=steps, device=device, made_up=made_up)
        print(as_text(result))
        if output is not None:
            workflow.write({"command": command_line(), **result}, output)
            print(f"written to {output}")
        return 0

    return parse(bench, "bench", own)
