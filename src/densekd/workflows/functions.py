"""`densekd.train`, `densekd.distill` and `densekd.evaluate`: the commands as functions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from textwrap import indent
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
from densekd.workflows.one_line import Network, check_objects, make_recipe, setting_of
from densekd.workflows.recipe import Recipe, is_first_process, read_recipe, run_folder
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
    # A network that was given as an object and that no file can build: filled anew by `load`.
    given: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        return self.stopped_by is None

    @cached_property
    def student(self) -> LoadedModel:
        """The trained network, ready to predict, on the CPU; read from the run's folder once."""
        return self.load()

    def load(self, *, best: bool = False, device: str = "cpu") -> LoadedModel:
        """The trained network: `densekd.load` of the run's folder."""
        network = copy.deepcopy(self.given)
        return load(self.folder, best=best, device=device, trusted=True, network=network)


def train(
    recipe: Recipe | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    model: Network | None = None,
    data: str | Path | Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    name: str | None = None,
    out: str | Path = "runs",
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    trusted: bool = False,
    **more: Any,
) -> RunResult:
    """Train a network alone, with labels only.

    By a recipe, or by ``model=`` and ``data=``, of which a recipe is made: it is printed, and kept in the run's folder
    as config.yaml. A teacher section is left unused.

    Args:
        recipe: name of a shipped recipe (``"camvid/espnet"``), path of a YAML file, a nested dict as YAML gives it, or
            a `Config`.
        settings: dotted name -> value, as on the command line: ``{"data.root": "camvid", "train.steps": 100}``.
        model: the network: a name (`list_models`), a recipe's name, a dotted path, a run's folder or its weights file
            (training begins with these weights), a section ``{"name": ..., "options": {...}}``, or an `nn.Module`,
            which is copied. The run of a module is resumed by the same call with ``resume=True``, not by a command.
        data: a data set's name (``densekd list datasets``), the name of a recipe with that data, a dotted path, a
            section ``{"dataset": ..., "root": ...}``, or a folder. Other settings are those of the shipped recipe
            for the data set, if there is one.
        root: the folder of the data set.
        name: the run's folder under `out`; by default made of the recipe's or the network's name.
        out: where run folders are made.
        resume: go on from the last checkpoint of the run's folder.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        quiet: print only what came out.
        trusted: allow a weights file to name a network outside of densekd, whose code is then imported and run.
        more: settings by their last name (``steps=100``, ``batch_size=8``, ``lr=0.01``) or with their section
            (``evaluate__batch_size=4``).

    Raises:
        UserError: something in the recipe or its files cannot be used. Nothing was written, unless training had begun.
    """
    given = {"student": model, "data": data, "root": root}
    run = {"name": name, "out": out, "resume": resume, "device": device, "quiet": quiet}
    return _run("train", recipe, settings, given, trusted, more, **run)


def distill(
    recipe: Recipe | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    student: Network | None = None,
    teacher: Network | None = None,
    data: str | Path | Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    terms: Mapping[str, Any] | None = None,
    name: str | None = None,
    out: str | Path = "runs",
    resume: bool = False,
    device: str = "auto",
    quiet: bool = False,
    trusted: bool = False,
    **more: Any,
) -> RunResult:
    """Train a student: labels, and terms that compare it with the teacher.

    The other arguments, the result and the errors are those of `train`.

    Args:
        student: the network to train, as `model` of `train`.
        teacher: the trained network, in the same forms, or an exported file (FILE.onnx, .xml or .pt2, or TorchScript).
            It is frozen and copied, and stands in place of all teachers of a recipe.
        terms: name of a loss -> its weight, or its section ``{"weight": 3, "temperature": 4}``. By default those of
            the recipe, or pixel-wise and pair-wise with weight 10; without those that an exported teacher, which has
            no features, cannot serve.

    Example:
        >>> run = densekd.distill(  # doctest: +SKIP
        ...     student="mobilenetv2plus", teacher="runs/teacher", data="camvid", root="camvid", steps=2000
        ... )
        >>> classes = run.student.predict("street.png")  # doctest: +SKIP
    """
    given = {"student": student, "teacher": teacher, "data": data, "root": root, "terms": terms}
    run = {"name": name, "out": out, "resume": resume, "device": device, "quiet": quiet}
    return _run("distill", recipe, settings, given, trusted, more, **run)


def _run(
    verb: str,
    recipe: Recipe | None,
    settings: Mapping[str, Any] | None,
    parts: Mapping[str, Any],
    trusted: bool,
    more: Mapping[str, Any],
    *,
    name: str | None,
    out: str | Path,
    resume: bool,
    device: str,
    quiet: bool,
) -> RunResult:
    parts = {key: value for key, value in parts.items() if value is not None}
    settings = {**(settings or {}), **{setting_of(key): value for key, value in more.items()}}
    networks: dict[str, nn.Module] = {}
    source: Recipe
    if recipe is not None and not parts:
        source, config = recipe, read_recipe(recipe, settings)
    else:
        made = make_recipe(recipe, settings, trusted=trusted, distil=verb == "distill", **parts)
        source, config, networks = made.tree, read_recipe(made.tree, made.settings), made.networks
        check_objects(config, networks)
        if not quiet and is_first_process():
            print("\n".join([*made.remarks, "the recipe:", indent(made.to_yaml(), "  ")]), end="")
    words = [f"{key}={_word(value)}" for key, value in parts.items()]
    if recipe is None:
        words.append(f"settings={settings!r}")
    else:
        shown = repr(str(recipe)) if isinstance(recipe, (str, Path)) else "RECIPE"
        words = [shown, f"{settings!r}", *words]
    folder = run_folder(out, name, recipe if isinstance(recipe, (str, Path)) else source, verb)
    outcome = carry_out(
        config,
        distil=verb == "distill",
        folder=folder,
        command=f"densekd.{verb}({', '.join(words)}, name={folder.name!r}, out={str(out)!r})",
        resume=resume,
        device=device,
        quiet=quiet,
        networks=networks,
    )
    return RunResult(
        folder, outcome.step, outcome.scores, outcome.stopped_by, networks.get("model")
    )


def _word(value: Any) -> str:
    """An argument as command.txt shows it."""
    return type(value).__name__ if isinstance(value, nn.Module) else repr(value)


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
