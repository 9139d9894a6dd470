"""The folders that `report` and `watch` are given -> rows: runs, an ablation, a demo."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from densekd.config.code import code_named
from densekd.config.forms import teachers_of
from densekd.config.load import load_config
from densekd.config.tree import flatten
from densekd.errors import UserError
from densekd.ops.files import read_object
from densekd.report.records import RunRecord, is_run, read_result, read_run
from densekd.report.rows import ALONE, DISTILLED, GUESS, REFERENCE, TEACHER, Row, row_of
from densekd.workflows.ablation_table import CONSTANT
from densekd.workflows.recipe import say_code
from densekd.workflows.variants import ORDER, SHORT, term_variants

# What two runs of one row may differ in.
OF_A_SEED = ("seed", "note")
# What the student alone differs in from the distilled one by its nature.
OF_THE_TEACHER = ("teacher", "teachers", "distill", "seed", "note")
RECIPES = re.compile(r"(?P<key>.+)_seed(?P<seed>\d+)\.yaml")


@dataclass
class Collected:
    """What the folders hold.

    Attributes:
        task: its name.
        rows: in the order of the table.
        others: runs whose curves are worth showing and that are in no row.
        remarks: what a reader must know.
    """

    task: str
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[RunRecord]:
        return [run for row in self.rows for run in row.runs]


def collect(folders: Sequence[Path]) -> Collected:
    """Read runs, or one folder of `ablate` or `demo`.

    Raises:
        UserError: a folder is none of these, several folders of which one is an ablation, or runs of different tasks.
    """
    if not folders:
        raise UserError("give at least one RUN: the folder of a run, an ablation or a demo")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"{folder} does not exist; RUN is the folder of a run, an ablation or a demo"
            )
    families = [folder for folder in folders if _ablation_of(folder) is not None]
    if families and len(folders) > 1:
        raise UserError(
            f"{families[0]} holds an ablation, which is reported alone; give it as the only RUN, or name its runs "
            f"({families[0]}/.../seed0)"
        )
    collected = _family(folders[0]) if families else _plain(folders)
    splits = {str((run.tree.get("data") or {}).get("val_split")) for run in collected.runs}
    if len(splits) > 1:
        collected.remarks.append(
            f"The runs were scored on different splits: {', '.join(sorted(splits))}."
        )
    notes = {str(run.tree.get("note") or "") for run in collected.runs} - {""}
    collected.remarks += [f"Note of the runs: {note}." for note in sorted(notes)]
    return collected


def say_codes(collected: Collected) -> None:
    """Say which code the runs' settings name, before any of it is imported."""
    said: list[list[str]] = []
    for run in collected.runs:
        try:
            config = load_config(run.folder.config)
        except UserError:  # settings of another version
            continue
        if (code := code_named(config)) and code not in said:
            said.append(code)
            say_code(config, str(run.folder.config))


def _ablation_of(folder: Path) -> Path | None:
    """The ablation that a folder is or, a demo's, holds."""
    inside = folder / "ablation"
    if (folder / "teacher.yaml").is_file() and ((folder / "teacher").is_dir() or inside.is_dir()):
        return inside
    return folder if (folder / "configs").is_dir() and (folder / "config.yaml").is_file() else None


def _family(folder: Path) -> Collected:
    """The rows of an ablation, and a demo's teacher."""
    ablation = _ablation_of(folder)
    assert ablation is not None
    rows: list[Row] = []
    constant, teacher = ablation / CONSTANT, ablation / "teacher.json"
    if constant.is_file():
        rows.append(Row("constant guess", GUESS, scores=[read_object(constant)], seeds=[0]))
    lessons = read_result(teacher) or {}
    run = folder / "teacher"
    if ablation != folder and is_run(run):
        rows.append(row_of("teacher", TEACHER, [read_run(run)]))
    elif lessons and "rows" not in lessons:
        rows.append(Row("teacher", TEACHER))
    if "scores" in lessons:
        _put_lessons(rows[-1], lessons)
    rows_of = lessons.get("rows") or {}
    if not isinstance(rows_of, dict) or not all(
        isinstance(own, dict) and isinstance(own.get("scores"), dict) for own in rows_of.values()
    ):
        raise UserError(f"{teacher}: rows are not those of teachers; copy the file again")
    for name, own in rows_of.items():  # of several teachers
        rows.append(Row(f"teacher {name}", TEACHER))
        _put_lessons(rows[-1], own)
    titles = _titles(ablation)
    runs: dict[str, list[RunRecord]] = {key: [] for key in titles}
    for recipe in sorted((ablation / "configs").glob("*.yaml"), key=_natural):
        match = RECIPES.fullmatch(recipe.name)
        if match is None:
            continue
        place = ablation / match["key"] / f"seed{match['seed']}"
        if is_run(place):
            runs.setdefault(match["key"], []).append(read_run(place))
    for key, found in runs.items():
        if not found:
            continue
        title, role = titles.get(key, (key.replace("=", " = "), DISTILLED))
        if not found[0].distilled and role == DISTILLED:
            role = REFERENCE
        rows.append(row_of(title, role, found))
    if not any(row.runs for row in rows):
        raise UserError(f"{folder}: none of its runs has begun yet; try again in a moment")
    return Collected(next(row.runs[0].task for row in rows if row.runs), rows)


def _put_lessons(row: Row, measured: dict[str, Any]) -> None:
    """What `ablate` measured of a teacher."""
    row.scores, row.seeds = [measured["scores"]], [0]
    row.parameters, row.macs = measured.get("parameters"), measured.get("macs")


def _titles(ablation: Path) -> dict[str, tuple[str, str]]:
    """Folder of a row -> its title and role; empty where the rows are the values of a setting."""
    try:
        variants = term_variants(load_config(ablation / "config.yaml"))
    except UserError:  # no terms, or settings of another version
        return {}
    if not any((ablation / variant.key).is_dir() for variant in variants):
        return {}
    return {
        v.key: (
            v.title,
            DISTILLED if v.distil else ALONE if v.key == "student" else REFERENCE,
        )
        for v in variants
    }


def _plain(folders: Sequence[Path]) -> Collected:
    """Runs that were started one by one: those that differ in their seed alone are one row."""
    unique = {folder.resolve(): folder for folder in folders}
    records = [read_run(folder) for folder in unique.values()]
    tasks = list(dict.fromkeys(record.task for record in records))
    if len(tasks) > 1:
        raise UserError(
            f"the runs are of different tasks ({', '.join(tasks)}); report each task by itself"
        )
    known = {record.path.resolve() for record in records}
    distilled = [record for record in records if record.distilled]
    teachers = {path for record in distilled for path in teacher_runs(record)}
    for path in sorted(teachers - known):
        records.insert(0, read_run(path))
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_kind(record), []).append(record)
    alone = _alone([r for r in records if r.path.resolve() not in teachers], distilled)
    rows = []
    for group in groups.values():
        first = group[0]
        if first.path.resolve() in teachers:
            rows.append(row_of("teacher", TEACHER, group))
        elif first.distilled:
            rows.append(row_of(terms_title(first), DISTILLED, group))
        elif alone is not None and _kind(alone) == _kind(first):
            rows.append(row_of("student alone", ALONE, group))
        else:
            rows.append(row_of("alone", REFERENCE, group))
    order = [TEACHER, ALONE, DISTILLED, REFERENCE]
    rows.sort(key=lambda row: order.index(row.role))
    titles = [row.title for row in rows]
    for row in rows:
        if titles.count(row.title) > 1 or row.role == REFERENCE:
            row.title = f"{row.title} ({_common_name(row.runs)})"
    return Collected(tasks[0], rows)


def _alone(records: Sequence[RunRecord], distilled: Sequence[RunRecord]) -> RunRecord | None:
    """The student without a teacher: the run whose settings are nearest to those of a distilled one."""
    plain = [record for record in records if not record.distilled]
    if not distilled:
        return None
    of_student = [r for r in plain if r.tree.get("model") == distilled[0].tree.get("model")]
    return min(of_student, key=lambda r: len(_differences(r, distilled[0])), default=None)


def _differences(one: RunRecord, other: RunRecord) -> list[str]:
    first, second = (
        {k: v for k, v in flatten(r.tree).items() if k.partition(".")[0] not in OF_THE_TEACHER}
        for r in (one, other)
    )
    return [k for k in first.keys() | second.keys() if first.get(k) != second.get(k)]


def _kind(record: RunRecord) -> str:
    """Equal for runs that differ in their seed alone."""
    return json.dumps(
        {k: v for k, v in record.tree.items() if k not in OF_A_SEED}, sort_keys=True, default=str
    )


def terms_title(record: RunRecord) -> str:
    """``+Pi +Pa`` of a distilled run."""
    section = record.tree.get("distill") or {}
    names = [k for k, v in section.items() if isinstance(v, dict) and "weight" in v]
    names.sort(key=lambda n: ORDER.index(n) if n in ORDER else ORDER.index("pair_wise") + 0.5)
    return " ".join(f"+{SHORT.get(name, name)}" for name in names) or "distilled"


def teacher_runs(record: RunRecord) -> list[Path]:
    """The run folders that made the teachers' weights, where they are at hand."""
    given = [section.get("weights") for section in teachers_of(record.tree).values()]
    files = [find_from(record.path, weights) for weights in given if weights]
    inside = [file for file in files if file is not None and file.parent.name == "checkpoints"]
    folders = [file.resolve().parent.parent for file in inside]
    return [folder for folder in folders if is_run(folder)]


def find_from(run: Path, name: str | os.PathLike[str]) -> Path | None:
    """A file or folder of a run's settings: from here, else from a folder that the run lies in.

    Settings hold the paths as the user typed them, and a report is often made from another folder than the run.
    """
    path = Path(name).expanduser()
    if path.exists() or path.is_absolute():
        return path if path.exists() else None
    return next((p for base in run.resolve().parents if (p := base / path).exists()), None)


def _common_name(runs: Sequence[RunRecord]) -> str:
    names = [run.name for run in runs]
    if len(set(names)) == 1:
        return names[0] if len(names) == 1 else f"{runs[0].path.parent.name}/{names[0]}"
    start = _common_start(names).rstrip("_-. ")
    return f"{start or names[0]}, {len(names)} seeds"


def _common_start(names: Sequence[str]) -> str:
    """The characters that all names begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def _natural(path: Path) -> list[Any]:
    """Numbers in names by their value."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in re.split(r"(\d+)", path.name)
    ]
