"""`data check`: read everything once and say what is there."""

from __future__ import annotations

from rich.progress import Progress

from densekd.build.data import build_reader, build_unlabelled
from densekd.config.schema import Config
from densekd.data.check import CheckReport, check_all


def check_splits(config: Config, splits: list[str]) -> dict[str, CheckReport]:
    """A report a split, with a progress bar. Missing folders raise UserError; bad files are listed."""
    reports = {}
    with Progress(transient=True) as progress:
        for split in splits:
            training = split == config.data.train_split
            reader = build_reader(config.data, split, training=training, verify_files=False)
            sets = {split: reader}
            if training and config.data.unlabelled is not None:
                sets["unlabelled"] = build_unlabelled(config.data, reader, verify_files=False)
            for name, one in sets.items():
                bar = progress.add_task(name, total=len(one))
                reports[name] = check_all(
                    one,
                    workers=config.data.workers,
                    progress=lambda done, bar=bar: progress.advance(bar, done),
                )
    return reports
