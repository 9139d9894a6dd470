"""`data synthesize`: the built-in scenes on disk, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densekd.ops.files import check_new_or_empty, clear_partial, take_name
from densekd.scenes import write_cityscapes

MADE = (
    "leftImg8bit",
    "gtFine",
    "depth",
    "camera",
    "annotations",
    "README.txt",
)  # by `write_cityscapes`


def synthesize(
    folder: Path,
    *,
    splits: Mapping[str, int],
    seed: int,
    height: int,
    width: int,
    extras: bool = True,
) -> None:
    """`write_cityscapes` over all cores; `extras` are depth and boxes.

    The scenes stand in ``FOLDER.partial`` until they are complete, so that nobody trains on half of them; what an
    interrupted call left there is made anew.
    """
    check_new_or_empty(folder)
    partial = clear_partial(folder, "scenes", lambda path: path.name in MADE)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("scenes", total=sum(splits.values()))
        write_cityscapes(
            partial,
            splits=splits,
            seed=seed,
            height=height,
            width=width,
            depth=extras,
            boxes=extras,
            workers=os.cpu_count() or 1,
            progress=lambda done: progress.advance(bar, done),
        )
    take_name(partial, folder)
