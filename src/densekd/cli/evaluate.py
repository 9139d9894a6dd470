"""``densekd evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from densekd.cli.arguments import Recipe, parse, read_recipe, split_overrides
from densekd.errors import UserError


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def evaluate(
        config: Recipe,
        weights: str | None = None,
        teacher: bool = False,
        teacher_name: str | None = None,
        split: str | None = None,
        output: Path | None = None,
        results: Path | None = None,
        device: str = "auto",
        note: str | None = None,
        trusted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Score a weights file on a split.

        Segmentation: mIoU, pixel accuracy, IoU of each class. Detection: COCO's AP over box overlaps 0.5 to 0.95, AP50,
        AP75, by size and class. Depth: AbsRel, RMSE and the other errors, share of pixels within a factor of 1.25.
        Shares are fractions.

        Sliding windows, scales and flips are settings: --evaluate.window '[713, 713]',
        --evaluate.scales '[0.75, 1, 1.25]', --evaluate.flip true.

        Args:
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
            weights: .safetensors or .pth of the recipe's model, the folder of a run of it, an exported file, or an id
                on the Hugging Face hub (owner/name); by default the recipe's model.weights.
            teacher: score the recipe's teacher instead, as the student hears it: with teacher.weights, and its classes
                put together as teacher.classes says.
            teacher_name: which one of several (teachers).
            split: of the data set; by default the recipe's data.val_split.
            output: JSON file to write. An older score file there is replaced, any other file is not.
            results: detection: file for all detections in COCO's result form; must not exist.
            device: auto, cpu, cuda, cuda:N or mps.
            note: stands for the setting note; it stands beside every score.
            trusted: allow an exported file (.pt2) to hold a program of its own, whose code is then run.
            quiet: print the scores without a progress bar.
        """
        settings = read_recipe(config, overrides, note=note)
        from densekd.workflows.evaluate import (
            check_output,
            evaluate_teacher,
            evaluate_weights,
            scores_text,
            write_scores,
        )
        from densekd.workflows.load import weights_file

        asked = teacher or teacher_name is not None
        if asked and weights is not None:
            raise UserError(
                "--weights are of the recipe's model; a teacher's are the setting --teacher.weights FILE"
            )
        file = None if weights is None else weights_file(Path(weights))
        if file is not None and not file.is_file():
            raise UserError(
                f"--weights {weights}: no such file; nor is it the id of a repository on the hub (owner/name, where no "
                "folder is called owner)"
            )
        if output is not None:
            check_output(output)

        if results is not None and results.exists():
            raise UserError(f"--results {results} exists; give another path")

        def report(task: Any, scores: dict[str, Any]) -> None:
            print(scores_text(task, scores))
            if results is not None:
                print(f"detections in {results}")
            if output is not None:
                write_scores(scores, output)
                print(f"written to {output}")

        split = split or settings.data.val_split
        more = {"device": device, "quiet": quiet, "report": report, "results": results}
        if asked:
            evaluate_teacher(settings, split, name=teacher_name, **more)
        else:
            evaluate_weights(settings, file, split, trusted=trusted, **more)
        return 0

    return parse(evaluate, "evaluate", own)
