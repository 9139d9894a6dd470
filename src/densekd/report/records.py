"""What a run folder says, read from its files alone; a run that still trains has less to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from densekd.config.forms import teachers_of
from densekd.config.load import make_config
from densekd.config.tree import parse_yaml
from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.errors import UserError
from densekd.ops.files import read_object


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        tree: its settings, nested as in config.yaml.
        commands: the lines of command.txt, each once.
        metrics: the rows of metrics.jsonl.
        result: result.json; None before the run has finished.
    """

    path: Path
    tree: dict[str, Any]
    commands: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def seed(self) -> int:
        return int(self.tree.get("seed") or 0)

    @property
    def task(self) -> str:
        section = self.tree.get("task") or "segmentation"
        return str(section.get("name", "segmentation")) if isinstance(section, dict) else section

    @property
    def distilled(self) -> bool:
        return bool(teachers_of(self.tree))

    @property
    def steps(self) -> int:
        """How many there will be."""
        return int((self.tree.get("train") or {}).get("steps") or 0)

    @property
    def done(self) -> int:
        """Steps that are logged."""
        return max((int(row.get("step", 0)) for row in self.metrics), default=0)

    @property
    def scores(self) -> dict[str, Any] | None:
        """Of the last evaluation; None before the first."""
        if self.result is not None:
            return self.result.get("scores")
        for row in reversed(self.metrics):
            found = {k[4:]: v for k, v in row.items() if k.startswith("val/")}
            if found:
                return found
        return None

    @property
    def weights(self) -> Path | None:
        """The last weights, or the best ones of a run that still trains."""
        folder = self.folder
        return next((p for p in (folder.student, folder.best) if p.is_file()), None)


def read_run(path: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        UserError: it is none, or a file of it is damaged.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UserError(
            f"{path} is not a run folder (it has no config.yaml); give the folder that densekd train, distill, ablate "
            "or demo made"
        )
    tree = read_settings(folder)
    lines = _text(folder.command).splitlines()
    return RunRecord(
        path=path,
        tree=tree,
        commands=list(dict.fromkeys(line for line in lines if line.strip())),
        environment=read_object(folder.environment) if folder.environment.is_file() else {},
        metrics=[row for row in read_metrics(folder.metrics) if isinstance(row, dict)],
        result=read_result(folder.result),
    )


# Settings and results that pages and tables calculate with, and what each may be; None and absent ones are allowed.
_SETTINGS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("model", "teacher", "teachers", "data", "optim", "distill", "train", "evaluate"), dict),
    **dict.fromkeys(("model.name", "teacher.name", "teacher.weights", "data.dataset", "data.val_split"), str),
    **dict.fromkeys(("model.options", "teacher.options", "data.unlabelled"), dict),
    **dict.fromkeys(("seed", "train.steps", "train.log_every", "train.accumulate", "data.batch_size"), int),
    "task": (str, dict),
}  # fmt: skip
_RESULTS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("scores", "config"), dict),
    **dict.fromkeys(("parameters", "macs", "seconds"), (int, float)),
    **dict.fromkeys(("step", "seed"), int),
    **dict.fromkeys(("split", "note"), str),
    "macs_size": list,
}  # fmt: skip


def read_settings(folder: RunFolder) -> dict[str, Any]:
    """The tree of config.yaml, whichever version of densekd wrote it.

    Raises:
        UserError: it is damaged.
    """
    tree = parse_yaml(_text(folder.config), str(folder.config))
    if not isinstance(tree, dict):
        raise UserError(f"{folder.config}: a config is a mapping of sections; copy the file again")
    try:
        make_config(tree, str(folder.config))
    except UserError:
        # Another version's, or damaged: what is calculated with must be what it should.
        _check(tree, _SETTINGS, folder.config)
        for name, section in (tree.get("teachers") or {}).items():
            _check(
                {name: section},
                {str(name): dict, f"{name}.name": str, f"{name}.weights": str},
                folder.config,
            )
    return tree


def read_result(path: Path, needs: Sequence[str] = ()) -> dict[str, Any] | None:
    """A result.json, or what `ablate` measured of a teacher; None where there is no file.

    Args:
        needs: entries that must be there.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    found = read_object(path)
    _check(found, _RESULTS, path)
    absent = [key for key in needs if key not in found]
    if absent:
        raise UserError(f"{path}: has no {', '.join(absent)}; copy the file again")
    size = found.get("macs_size")
    if size is not None and not (len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise UserError(
            f"{path}: macs_size is {str(size)[:80]}, expected two numbers; copy the file again"
        )
    return found


def _check(tree: dict[str, Any], kinds: dict[str, type | tuple[type, ...]], path: Path) -> None:
    for key, kind in kinds.items():
        value: Any = tree
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            expected = " or ".join(
                k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))
            )
            raise UserError(
                f"{path}: {key} is {str(value)[:80]!r}, which is no {expected}; copy the file again"
            )


def is_run(path: Path) -> bool:
    """Whether a folder was made by a run (an ablation's has a config.yaml too, and no command)."""
    folder = RunFolder(path)
    return folder.config.is_file() and (folder.command.is_file() or folder.metrics.is_file())


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
