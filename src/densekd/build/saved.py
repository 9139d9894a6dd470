"""A network and its task from a weights file alone: what `provenance.weights_metadata` put into it, read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from densekd.build import provenance
from densekd.build.networks import GIVEN, build_network, round_layers
from densekd.build.resolve import TASK, call, resolve
from densekd.config import schema
from densekd.config.names import MODELS, TASKS
from densekd.data.base import IGNORE_INDEX, distinct_colours
from densekd.errors import WeightsError
from densekd.models.weights import load_weights, read_weights
from densekd.tasks import Task
from densekd.types import InputSpec

# Entry of the description -> what it must be; those of LATER may be missing from files of older versions.
EXPECTED = {
    "task": str,
    "model": dict,
    "model.name": str,
    "model.options": dict,
    "model.in_channels": int,
    "input": dict,
    "classes": list,
    "arguments": dict,
}
LATER = {"task_section": dict, "task_section.name": str, "task_section.options": dict}


@dataclass(frozen=True)
class Saved:
    """What a weights file holds.

    Attributes:
        network: bare, with its weights, on the CPU.
        about: the file's description.
    """

    network: nn.Module
    spec: InputSpec
    task: Task
    about: dict[str, Any]


def build_saved(path: Path, *, trusted: bool = False, network: nn.Module | None = None) -> Saved:
    """Build the network and the task that a weights file of a run describes.

    Args:
        trusted: import networks and tasks that the file names by a dotted path. Importing and calling what a file names
            can run any code, so only for files whose origin is known.
        network: is filled, in place of the one that the file names.

    Raises:
        WeightsError: the file is missing, damaged, or was not written by a run.
    """
    about = read_description(path)
    model = saved_model(path, about, trusted=trusted, given=network is not None)
    try:
        task = _task(about)
        if network is None:
            network, spec = build_network(model, task, "model")
        else:
            spec = InputSpec(**about["input"])
            if model.int8:
                round_layers(network, spec, "network")
            load_weights(network, path)
    except WeightsError:
        raise
    except (
        Exception
    ) as error:  # whatever a file's description breaks, it is the file that cannot be used
        raise WeightsError(
            f"{path}: its network cannot be built: {error}. Was it written by another version "
            f"({about.get('version', 'unknown')})? Score it through a recipe: densekd evaluate RECIPE --weights {path}"
        ) from error
    return Saved(network, spec, task, about)


def read_description(path: Path) -> dict[str, Any]:
    """What a weights file says of its network; WeightsError where it says nothing or nonsense."""
    read_weights(path)  # says what is wrong with a damaged or foreign file
    about = provenance.about_weights(str(path))
    if not about:
        raise WeightsError(
            f"{path}: does not say which network it is of; only files written by densekd train and densekd distill do. "
            f"Use it through a recipe that names the network (densekd evaluate RECIPE --weights {path}), or build the "
            "network yourself and fill it with densekd.models.load_weights(network, path)"
        )
    expected = (
        {**EXPECTED, **LATER} if isinstance(about, dict) and "task_section" in about else EXPECTED
    )
    wrong = [key for key, kind in expected.items() if not isinstance(_entry(about, key), kind)]
    if wrong:
        raise WeightsError(
            f"{path}: its description lacks {', '.join(wrong)} or holds something else there; copy the file again, or "
            f"score it through a recipe: densekd evaluate RECIPE --weights {path}"
        )
    return about


def _entry(about: Any, key: str) -> Any:
    """The entry of a dotted name; None where there is none."""
    for part in key.split("."):
        about = about.get(part) if isinstance(about, dict) else None
    return about


def saved_task(path: Path, about: Mapping[str, Any], *, trusted: bool = False) -> Task:
    """The task that a description names, as of an exported file, whose network is none of ours.

    Raises:
        WeightsError: the description is of another version, or names a task outside of densekd.
    """
    name = _entry(about, "task_section.name") or about.get("task")
    if name not in TASKS and not trusted:
        raise WeightsError(
            f"{path}: is of the task {name!r}, which is no part of densekd; to build it means to import and run that "
            "code. If you trust the file, say so (--trusted)"
        )
    try:
        return _task(about)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path}: its task cannot be built: {error}") from error


def saved_model(
    path: Path, about: Mapping[str, Any], *, trusted: bool, given: bool = False
) -> schema.Model:
    """The model section that the file describes, with the file as its weights.

    Args:
        given: the network is at hand, so the file's name for it is not imported.
    """
    model = about["model"]
    task = _entry(about, "task_section.name") or about["task"]
    if model["name"].startswith(GIVEN) and not given:
        raise WeightsError(
            f"{path}: is of a {model['name'].removeprefix(GIVEN)} that was given as a Python object; build such a "
            "network and give it: densekd.load(path, network=NETWORK)"
        )
    named = [(task, TASKS)] if given else [(model["name"], MODELS), (task, TASKS)]
    for name, table in named:
        if name not in table and not trusted:
            raise WeightsError(
                f"{path}: is of {name!r}, which is no part of densekd; to build it means to import and run that code. "
                "If you trust the file: densekd.load(path, trusted=True)"
            )
    return schema.Model(
        name=model["name"],
        options=model["options"],
        in_channels=model["in_channels"],
        prediction=model.get("prediction"),
        int8=model.get("int8", False) is True,
        weights=str(path),
    )


def _task(about: Mapping[str, Any]) -> Task:
    """The task with the settings it was trained with; old files have no more than names and ranges."""
    classes, arguments = about["classes"], about["arguments"]
    given = {
        "classes": classes,
        "palette": distinct_colours(len(classes)),
        "ignore_index": IGNORE_INDEX,
        **{name: about[name] for name in provenance.OF_THE_DATA if name in about},
    }
    name, options = about["task"], {}
    if "task_section" in about:
        name, options = about["task_section"]["name"], about["task_section"]["options"]
    elif "depth_range" in arguments:
        low, high = arguments["depth_range"]
        bins = arguments["num_classes"] if arguments["num_classes"] > 1 else 0
        options = {"min_depth": low, "max_depth": high, "bins": bins}
    return call(resolve(name, TASKS, "task", TASK), options, "task", **given)
