"""``densekd latency``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from densekd.cli.arguments import Model, parse, recipe_for_model, split_overrides
from densekd.errors import UserError


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def latency(
        model: Model,
        /,
        onnx: Path | None = None,
        size: tuple[int, int] | None = None,
        threads: int | None = None,
        runs: int = 50,
        recipe: str | None = None,
        best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        trusted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "cpu",
        as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Show what one image costs: parameters, multiply-accumulates, median and 95th percentile of its time.

        Args:
            model: folder of a run, or a weights file.
            onnx: file of densekd export, measured in turns with PyTorch.
            size: height and width of the image; by default those the network was trained at, else 192 256.
            threads: by default as many as PyTorch takes.
            runs: that are counted; three more come before.
            recipe: recipe of the network, for weights files that do not say which one they are of (.pth).
            best: of a run, the weights that scored best.
            trusted: allow a file to name a network outside of densekd, whose code is then run.
            device: of PyTorch: auto, cpu, cuda, cuda:N or mps.
            as_json: print the numbers as JSON.
        """
        config = recipe_for_model(recipe, overrides)
        wrong = [
            f"{name} {value}"
            for name, value in (
                ("--threads", threads),
                ("--runs", runs),
                ("--size", size and min(size)),
            )
            if value is not None and value < 1
        ]
        if wrong:
            raise UserError(f"{wrong[0]}: must be at least 1")
        if onnx is not None and not onnx.is_file():
            raise UserError(f"--onnx {onnx}: no such file")
        from densekd.workflows import latency as workflow
        from densekd.workflows.open_model import open_model

        loaded = open_model(Path(model), config, best=best, trusted=trusted, device=device)
        result = workflow.latency(loaded, size=size, onnx=onnx, threads=threads, runs=runs)
        print(json.dumps(result) if as_json else workflow.as_text(result))
        return 0

    return parse(latency, "latency", own)
