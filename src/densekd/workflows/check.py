"""`data check`: read everything once and say what is there."""

from __future__ import annotations

from rich.progress import Progress

from densekd.build.data import build_reader
from densekd.config.schema import Config
from densekd.data.check import CheckReport, check_all


def check_splits(config: Config, splits: list[str]) -> dict[str, CheckReport]:
    """A report a split, with a progress bar. Missing folders raise UserError; bad files are listed."""
    reports = {}
    with Progress(transient=True) as progress:
        for split in splits:
            training = split == config.data.train_split
            reader = build_reader(config.data, split, training=training, verify_files=False)
            bar = progress.add_task(split, total=len(reader))
            reports[split] = check_all(
                reader,
                workers=config.data.workers,
                progress=lambda done, bar=bar: progress.advance(bar, done),
            )
    return reports
