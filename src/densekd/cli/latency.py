"""``densekd latency``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from densekd.cli.arguments import parse, recipe_for_model, split_overrides
from densekd.errors import UserError


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def latency(
        models: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="MODEL...")],
        /,
        onnx: Path | None = None,
        formats: tuple[Literal["onnx", "openvino", "int8"], ...] = (),
        names: tuple[str, ...] = (),
        scores: tuple[float, ...] = (),
        plot: Path | None = None,
        size: tuple[int, int] | None = None,
        threads: int | None = None,
        runs: int = 50,
        recipe: str | None = None,
        best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        trusted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "cpu",
        as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Show what one image costs networks: parameters, multiply-accumulates, memory, median and 95th percentile of
        its time, beside the scores of finished runs. All networks and files take turns.

        Args:
            models: folders of runs, weights files, FILE@RECIPE, files of densekd export, or ids on the Hugging Face hub
                (owner/name).
            onnx: one more ONNX file, of the first model.
            formats: export each network into a temporary folder and measure it there too; int8 is calibrated on random
                images, for its time alone.
            names: a title a model; by default the names of the files or runs.
            scores: the main score of each model as the table shows it (mIoU in per cent), where its run does not tell
                it.
            plot: file for the picture of score against time, FILE.svg; must not exist.
            size: height and width of the image; by default those the network was trained at, else 192 256.
            threads: by default as many as PyTorch takes.
            runs: that are counted; three more come before.
            recipe: recipe of the network, for weights files that do not say which one they are of (.pth).
            best: of a run, the weights that scored best.
            trusted: allow a file to name a network outside of densekd, or to hold a program of its own (.pt2), whose
                code is then run.
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
        if scores and len(scores) != len(models):
            raise UserError(
                f"--scores: {len(scores)} given for {len(models)} models; give one each"
            )
        from densekd.workflows import latency as workflow
        from densekd.workflows.open_model import model_titles, open_models

        if plot is not None:
            workflow.check_plot(plot)
        titles = model_titles(models, names)
        loaded = open_models(models, config, best=best, trusted=trusted, device=device)
        result = workflow.latency(
            loaded, titles, size=size, onnx=onnx, formats=formats, threads=threads, runs=runs
        )
        for row in result["rows"] if scores else []:
            if not row["runtime"].endswith("int8"):
                row["score"] = scores[titles.index(row["network"])] / row["factor"]
        if plot is not None:
            workflow.save_plot(result, plot)
        print(json.dumps(result) if as_json else workflow.as_text(result))
        return 0

    return parse(latency, "latency", own)
