"""``densekd predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from densekd.cli.arguments import Model, parse, recipe_for_model, split_overrides
from densekd.errors import UserError

Kind = Literal["index", "colour", "overlay", "drawn", "results", "metres"]


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def predict(
        model: Model,
        inputs: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="INPUT...")],
        /,
        out: Path,
        only: tuple[Kind, ...] = (),
        frames: int | None = None,
        submission: Literal["cityscapes"] | None = None,
        recipe: str | None = None,
        best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        trusted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "auto",
        as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Write a network's answers for images, videos or a camera into a folder.

        Segmentation: index/ (class of each pixel), colour/ and overlay/. Detection: drawn/ and results.json in COCO's
        form. Depth: metres/ (16-bit PNG) and colour/. Of a video each frame is written so, and its pictures are joined
        to an MP4. The same command goes on where it stopped: what is there is left
        as it is, and a folder with another model's answers is refused. Ends with status 1 where an image could not be
        read.

        Args:
            model: folder of a run, a weights file, FILE@RECIPE, an exported file, or an id on the Hugging Face hub
                (owner/name).
            inputs: images, folders (searched to the bottom), patterns in quotes ('drives/**/*.jpg'), videos, or a
                camera (0 or /dev/video0), which goes on until Ctrl-C.
            out: folder for the answers; outputs keep the path of their image below its INPUT.
            only: which files; by default all that the task has.
            frames: at most so many of each video or camera.
            submission: write label_ids/ and submission.zip as the test server of Cityscapes takes them.
            recipe: recipe of the network, for weights files that do not say which one they are of (.pth).
            best: of a run, the weights that scored best.
            trusted: allow a file to name a network outside of densekd, or to hold a program of its own (.pt2), whose
                code is then run.
            device: auto, cpu, cuda, cuda:N or mps.
            as_json: print what was done as JSON.
        """
        config = recipe_for_model(recipe, overrides)
        from densekd.workflows import predict as workflow
        from densekd.workflows.open_model import open_model
        from densekd.workflows.predict_inputs import find_all

        if frames is not None and frames < 1:
            raise UserError(f"--frames {frames}: must be at least 1")
        found, videos = find_all(inputs, out)
        loaded = open_model(model, config, best=best, trusted=trusted, device=device)
        result = workflow.predict(
            loaded, found, out,
            only=only, videos=videos, frames=frames, submission=submission is not None, quiet=as_json,
        )  # fmt: skip
        print(json.dumps(result.as_dict()) if as_json else workflow.as_text(result, loaded))
        return 1 if result.unreadable else 0

    return parse(predict, "predict", own)
