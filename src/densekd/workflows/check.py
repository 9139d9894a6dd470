"""`data check`: read everything once and say what is there, and what a run would remark on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densekd.build.data import (
    build_reader,
    build_unlabelled,
    check_form,
    compare_readers,
    loader_processes,
    validation_images,
)
from densekd.build.settings import in_settings
from densekd.config.schema import Config
from densekd.data.check import CheckReport, check_all
from densekd.errors import DataError


@dataclass
class Findings:
    """What `check_splits` found.

    Attributes:
        reports: of each split, and of ``"unlabelled"`` where the recipe has such a set.
        errors: what a run would stop at or remark on because its numbers would be worth nothing; bad files stand in
            `reports`.
        notes: what a run says, though nothing is wrong with it.
    """

    reports: dict[str, CheckReport] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """No file is bad and there is no error."""
        return not self.errors and not any(report.bad for report in self.reports.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the reports by name, and beside them errors and notes."""
        reports = {name: report.to_dict() for name, report in self.reports.items()}
        return {**reports, "errors": self.errors, "notes": self.notes}


def check_splits(config: Config, splits: list[str]) -> Findings:
    """Read every file of some splits, with a progress bar (on stderr); bad files are listed.

    Args:
        splits: names; the training split's name stands for what training reads. Where both splits have one name (with
            `data.val_fraction`), it may stand twice: the second is what is scored.

    Raises:
        UserError: folders are missing, or the recipe's settings do not fit the data: nothing is read then.
    """
    data, found = config.data, Findings()
    readers: dict[str, Any] = {}
    names: dict[str, Any] = {}
    for place, split in enumerate(splits):
        training = split == data.train_split and split not in splits[:place]
        reader = build_reader(data, split, training=training, verify_files=False)
        name = split if split not in readers else f"{split} (validation)"
        readers[name] = reader
        names[name] = check_form(reader, config, split, training=training)
        if training and data.unlabelled is not None:
            readers["unlabelled"] = build_unlabelled(data, reader, verify_files=False)
            names["unlabelled"] = {}
    if data.val_fraction is not None:
        counts = ", ".join(f"{name}: {len(one)}" for name, one in readers.items())
        found.notes.append(f"data.val_fraction: images of {counts}")
    scored = [name for name in readers if name not in ("unlabelled", data.train_split)]
    for name in scored:
        if data.train_split in readers:
            found.errors += compare_readers(data, readers[data.train_split], readers[name])
        if "unlabelled" in readers:
            found.notes += validation_images(readers["unlabelled"], readers[name])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        bars = {name: progress.add_task(name, total=len(one)) for name, one in readers.items()}
        for name, reader in readers.items():
            report = check_all(
                reader,
                workers=loader_processes(data),
                progress=lambda done, bar=bars[name]: progress.advance(bar, done),
            )
            report.bad = [(bad, in_settings(reason, names[name])) for bad, reason in report.bad]
            found.reports[name] = report
            try:
                remarks = report.remarks()
            except DataError as error:
                remarks = [str(error)]
            said = [in_settings(remark, names[name]) for remark in remarks]
            found.errors += [f"{name}: {one}" for one in said]
    return found
