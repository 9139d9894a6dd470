"""The run folder: what a run is, what it measured, and nothing of another run."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from densekd.errors import UserError
from densekd.ops.files import PARTIAL, read_object, write_text, writing

VERSIONS = (
    "densekd",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "faster-coco-eval",
    "onnxruntime",
    "openvino",
)


class RunFolder:
    """``runs/NAME/{config.yaml, command.txt, environment.json, metrics.jsonl, result.json, checkpoints/}``."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.lock = self.path / ".lock"
        self.command = self.path / "command.txt"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.pt"
        self.previous = self.checkpoints / "previous.pt"
        self.student = self.checkpoints / "student.safetensors"
        self.best = self.checkpoints / "best.safetensors"

    def occupied(self) -> bool:
        with writing(self.path):  # a name that is too long, a folder that may not be read
            return self._occupied()

    def _occupied(self) -> bool:
        if not self.path.is_dir():
            return self.path.exists()
        return any(not self._left_by_a_start(entry) for entry in self.path.iterdir())

    def _left_by_a_start(self, entry: Path) -> bool:
        """Whether `open` makes it before config.yaml: what is left where the start was killed."""
        if entry == self.checkpoints:
            return not any(entry.iterdir())
        return entry == self.lock or entry.name.endswith(PARTIAL)

    def check(self, *, resume: bool, changed: list[str]) -> None:
        """Fail early where `open` could not go on; makes nothing.

        Args:
            changed: settings that differ from the folder's config and may not.

        Raises:
            UserError: the folder exists and `resume` is off, is no run folder, or belongs to other settings.
        """
        if not self.occupied():
            return
        if not resume:
            raise UserError(
                f"run folder {self.path} already exists. Give another --name, or --resume to go on from its last "
                "checkpoint; nothing in it was changed."
            )
        if not self.config.exists():
            raise UserError(
                f"{self.path} is not a run folder (it has no config.yaml); give another --name"
            )
        if changed:
            raise UserError(
                f"--resume: {self.path} was started with other settings: {'; '.join(changed)}. "
                "Repeat the command it was started with (command.txt there), or give another --name."
            )

    def last_threads(self) -> int | None:
        """Compute threads of the run's last start; None before the first, and where the file does not say."""
        try:
            threads = json.loads(self.environment.read_text(encoding="utf-8")).get("threads")
        except (OSError, ValueError, AttributeError, RecursionError):
            return None  # it is written anew at every start, and decides nothing
        return threads if isinstance(threads, int) else None

    @contextmanager
    def open(self, config_text: str, command: str, *, resume: bool) -> Iterator[None]:
        """Make a new folder, or continue in an old one, and hold it against a second process. Rank 0 only."""
        self.check(resume=resume, changed=[])
        with writing(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = open(self.lock, "w")  # noqa: SIM115 - closed below, after the run
        with lock:
            _lock(lock, self.path)
            self.check(resume=resume, changed=[])  # another process may have begun here meanwhile
            if not self.config.exists():
                write_text(self.config, config_text)
            with writing(self.command), open(self.command, "a", encoding="utf-8") as file:
                file.write(command + "\n")
            write_text(self.environment, json.dumps(describe_environment(), indent=2) + "\n")
            yield


def _lock(file: IO[str], folder: Path) -> None:
    """Wait a moment: a part of a killed ablation saves before it goes."""
    for left in range(20, -1, -1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if left == 0:
                raise UserError(f"run folder {folder} is in use by another process") from error
            time.sleep(0.5)


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, for whoever wants to repeat a number."""
    versions: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_device": device,
        "cuda": torch.version.cuda if device else None,
        "versions": versions,
    }


def result_beside(weights: Path) -> dict[str, Any]:
    """result.json of the run whose checkpoint a file is; empty where it is of none, or the result cannot be read."""
    folder = RunFolder(weights.parent.parent)
    if weights.resolve().parent != folder.checkpoints.resolve() or not folder.result.is_file():
        return {}
    try:
        return read_object(folder.result)
    except UserError:
        return {}
