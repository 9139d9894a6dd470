"""`data synthesize`: the built-in scenes on disk, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densekd.data.scenes import write_cityscapes


def synthesize(
    folder: Path,
    *,
    splits: Mapping[str, int],
    seed: int,
    height: int,
    width: int,
    extras: bool = True,
) -> None:
    """`write_cityscapes` over all cores; `extras` are depth and boxes."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("scenes", total=sum(splits.values()))
        write_cityscapes(
            folder,
            splits=splits,
            seed=seed,
            height=height,
            width=width,
            depth=extras,
            boxes=extras,
            workers=os.cpu_count() or 1,
            progress=lambda done: progress.advance(bar, done),
        )
