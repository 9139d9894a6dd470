"""`densekd.train`, `densekd.distill` and `densekd.evaluate`: the commands as functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from densekd.build.networks import check_origin
from densekd.build.saved import read_description, saved_model
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.models.taps import Taps
from densekd.models.weights import read_metadata
from densekd.tasks import Task
from densekd.types import InputSpec
from densekd.workflows.evaluate import evaluate_network, evaluate_weights
from densekd.workflows.load import LoadedModel, load, weights_file
from densekd.workflows.recipe import Recipe, read_recipe, run_folder
from densekd.workflows.run import carry_out


@dataclass(frozen=True)
class RunResult:
    """What `train` and `distill` give back.

    Attributes:
        folder: the run's folder, with config.yaml, metrics.jsonl, result.json and checkpoints/.
        step: optimizer steps done.
        scores: of the validation split at the last evaluation; None where the run was stopped before the first.
        stopped_by: ``"SIGINT"`` or ``"SIGTERM"`` where that signal stopped the run before its end, else None; the same
            call with ``resume=True`` goes on.
    """

    folder: Path
    step: int
    scores: dict[str, Any] | None
    stopped_by: str | None = None

    @property
    def finished(self) -> bool:
        return self.stopped_by is None

    def load(self, *, best: bool = False, device: str = "cpu") -> LoadedModel:
        """The trained network: `densekd.load` of the run's folder."""
        return load(self.folder, best=best, device=device, trusted=True)  # this run wrote it


def train(
    recipe: Recipe,
    settings: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    out: str | Path = "runs",
    resume: bool = False,
    device: str = "auto",
) -> RunResult:
    """Train the recipe's model alone, with labels only; a teacher section is left unused.

    Args:
        recipe: name of a shipped recipe (``"camvid/espnet"``), path of a YAML file, a nested dict as YAML gives it, or
            a `Config`.
        settings: dotted name -> value, as on the command line: ``{"data.root": "camvid", "train.steps": 100}``.
        name: the run's folder under `out`; by default made of the recipe's name.
        out: where run folders are made.
        resume: go on from the last checkpoint of the run's folder.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.

    Raises:
        UserError: something in the recipe or its files cannot be used. Nothing was written, unless training had begun.
    """
    return _run("train", recipe, settings, name, out, resume, device)


def distill(
    recipe: Recipe,
    settings: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    out: str | Path = "runs",
    resume: bool = False,
    device: str = "auto",
) -> RunResult:
    """Train the recipe's model as a student: labels, and terms that compare it with the teacher.

    Arguments, result and errors are those of `train`.

    Example:
        >>> run = densekd.distill("demo/segmentation_student", {"teacher.weights": "t.safetensors"})  # doctest: +SKIP
        >>> classes = run.load().predict("street.png")  # doctest: +SKIP
    """
    return _run("distill", recipe, settings, name, out, resume, device)


def _run(
    verb: str,
    recipe: Recipe,
    settings: Mapping[str, Any] | None,
    name: str | None,
    out: str | Path,
    resume: bool,
    device: str,
) -> RunResult:
    config = read_recipe(recipe, settings)
    folder = run_folder(out, name, recipe, verb)
    shown = repr(str(recipe)) if isinstance(recipe, (str, Path)) else "RECIPE"
    outcome = carry_out(
        config,
        distil=verb == "distill",
        folder=folder,
        command=f"densekd.{verb}({shown}, {dict(settings or {})!r}, name={folder.name!r}, out={str(out)!r})",
        resume=resume,
        device=device,
    )
    return RunResult(folder, outcome.step, outcome.scores, outcome.stopped_by)


def evaluate(
    model: str | Path | nn.Module,
    recipe: Recipe | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    device: str = "auto",
    trusted: bool = False,
) -> dict[str, Any]:
    """Score a network on a split, as ``densekd evaluate`` does.

    Args:
        model: a run folder, a weights file, what `load` gave, a `Taps`, or any network (one without an ``input_spec``
            of its own is taken to want ImageNet's). A file that a run wrote knows its own network; any other file is of
            the recipe's model. A network is moved to `device` and stays there.
        recipe: as in `train`; its data, task and evaluate sections count. None takes the run folder's own.
        settings: dotted name -> value, over the recipe.
        split: of the data set; by default the recipe's ``data.val_split``.
        trusted: as in `load`.

    Returns:
        the task's scores, e.g. ``{"miou", "pixel_accuracy", "iou": {class: ...}}``, with what was scored.
    """
    if recipe is None:
        recipe = _own_recipe(model)
    config = read_recipe(recipe, settings)
    split = split or config.data.val_split
    if not isinstance(model, nn.Module):
        file = weights_file(Path(model))
        if file.is_file() and "densekd" in read_metadata(file):
            section = saved_model(file, read_description(file), trusted=trusted)
            config = replace(config, model=section)
        return evaluate_weights(config, file, split, device=device, quiet=True)
    network, spec = model, getattr(model, "input_spec", None) or InputSpec()
    about: dict[str, Any] = {}
    name = type(model).__name__
    if isinstance(model, (LoadedModel, Taps)):
        network = model.model
        name = type(network).__name__
    if isinstance(model, LoadedModel):
        about, name = model.about, str(model.path)
    config = replace(config, model=replace(config.model, in_channels=spec.channels))

    def built(task: Task) -> tuple[nn.Module, InputSpec]:
        check_origin(about, task, name)
        return network, spec

    note = config.note or about.get("note", "")
    space = model.label_space if isinstance(model, Taps) else None
    return evaluate_network(
        config,
        built,
        split,
        name=name,
        note=note,
        device=device,
        quiet=True,
        label_space=lambda task: space,
    )


def _own_recipe(model: str | Path | nn.Module) -> Path:
    """The recipe that a run folder keeps."""
    if isinstance(model, (str, Path)) and RunFolder(model).config.exists():
        return RunFolder(model).config
    raise UserError(
        "evaluate: which data? Give a recipe as the second argument (a shipped name, a YAML file or a dict); only a "
        "run folder brings its own"
    )
