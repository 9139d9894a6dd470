"""`data synthesize`: the built-in scenes on disk, with a progress bar."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densekd.errors import UserError
from densekd.scenes import write_cityscapes


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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; give the name of a new or empty folder")
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        if not _is_ours(partial):
            raise UserError(f"{partial} is in the way: scenes are written there first; move it")
        shutil.rmtree(partial)
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
    if folder.exists():
        folder.rmdir()  # empty, see above
    partial.rename(folder)


def _is_ours(partial: Path) -> bool:
    """Only what `write_cityscapes` makes may be deleted."""
    made = {"leftImg8bit", "gtFine", "depth", "camera", "annotations", "README.txt"}
    return partial.is_dir() and {p.name for p in partial.iterdir()} <= made
