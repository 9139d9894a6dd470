"""``densekd compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from densekd.cli.arguments import parse, recipe_for_model, split_overrides
from densekd.errors import UserError
from densekd.ops.files import write_text


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def compare(
        models: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="MODEL...")],
        /,
        out: Path,
        input: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
        recipe: str | None = None,
        split: str | None = None,
        labels: Path | None = None,
        frames: int | None = None,
        width: int = 320,
        fps: float = 2.0,
        quality: int = 70,
        table: Path | None = None,
        trusted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "auto",
        as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Show several networks' answers for the same images side by side, with their time and, where the truth is
        known, the score of each frame.

        The time is the median of ten calls on the first frame, decoding included, the networks in turns.

        Args:
            models: folders of runs, weights files, FILE@RECIPE for files that do not say which network they are of
                (ESPNet_base.pth@camvid/espnet), exported files, ids on the Hugging Face hub (owner/name).
            out: the picture, FILE.webp, .gif or .mp4 (moving) or FILE.png (a row an image); must not exist.
            input: images, folders, patterns in quotes, or one video or camera (0); by default the images of the
                recipe's split.
            names: a title a model; by default the names of the files or runs.
            recipe: names the network of files that do not say it, and with its data root (--data.root FOLDER) the truth
                of the images that are of its split.
            split: of the recipe's data set; by default the recipe's data.val_split.
            labels: folder with the truth as class indices: a PNG with the name of each image.
            frames: at most so many, evenly apart; of a video the first ones. By default all, and 8 for a PNG.
            width: of one picture, in pixels.
            fps: frames a second.
            quality: of WebP, 1 to 100.
            table: Markdown file for the scores by class, a column a network; must not exist.
            trusted: allow a file to name a network outside of densekd, or to hold a program of its own (.pt2), whose
                code is then run.
            device: auto, cpu, cuda, cuda:N or mps.
            as_json: print times and scores as JSON.
        """
        wrong = [
            f"{name} {value}"
            for name, value, low in (
                ("--frames", frames, 1), ("--width", width, 32), ("--fps", fps, 0.01), ("--quality", quality, 1),
            )
            if value is not None and value < low
        ]  # fmt: skip
        if wrong:
            raise UserError(f"{wrong[0]}: is too small")
        config = recipe_for_model(recipe, overrides)
        from densekd.workflows import compare as workflow
        from densekd.workflows.compare_inputs import Truth, reader_of
        from densekd.workflows.compare_text import as_text, class_table
        from densekd.workflows.open_model import model_titles, open_models

        workflow.check_out(out)
        if table is not None and table.exists():
            raise UserError(f"--table {table} exists; give another name")
        if labels is not None and not labels.is_dir():
            raise UserError(f"--labels {labels}: no such folder")
        reader = reader_of(config, split)
        if not input and reader is None:
            raise UserError(
                "compare on which images? Give --input IMAGES, or --recipe RECIPE with --data.root FOLDER"
            )
        if table is not None and reader is None and labels is None:
            raise UserError(
                "--table: wants truth; give --recipe with --data.root FOLDER, or --labels"
            )
        loaded = open_models(models, config, device=device, trusted=trusted)
        titles = model_titles(models, names)
        truth = Truth(reader, labels)
        result = workflow.compare(
            loaded, titles, input, out,
            truth=truth, recipe=config, frames=frames, width=width, rate=fps, quality=quality,
        )  # fmt: skip
        if table is not None:
            write_text(table, class_table(result, loaded))
        print(json.dumps(result) if as_json else as_text(result, loaded))
        return 0

    return parse(compare, "compare", own)
