"""A network of a recipe with its weights, and what it wants to see."""

from __future__ import annotations

from typing import Any

from torch import nn

from densekd.build import provenance
from densekd.build.resolve import call, resolve
from densekd.config import schema
from densekd.config.names import MODELS
from densekd.errors import UserError
from densekd.models.weights import load_weights
from densekd.tasks import Task
from densekd.types import InputSpec


def build_network(
    model: schema.Model, task: Task, where: str, *, num_classes: int | None = None
) -> tuple[nn.Module, InputSpec]:
    """The bare network with its weights, and what it wants to see.

    Weights that a run wrote know their task, classes and input: another task, other classes or another range of
    depth are errors, and their input holds where the recipe does not set one.

    Args:
        num_classes: what the network predicts, where that is not what the task does.
    """
    own_classes = {} if num_classes is None else {"num_classes": num_classes}
    builder = resolve(model.name, MODELS, f"{where}.name")
    options = dict(model.options)
    if model.weights is not None and "backbone_weights" in options:
        options["backbone_weights"] = None  # the whole network's weights replace them: do not fetch
    network = call(
        builder,
        options,
        f"{where}.options",
        in_channels=model.in_channels,
        **{**task.network_arguments, **own_classes},
    )
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{where}.name: {model.name!r} gave {type(network).__name__}, not an nn.Module"
        )
    own = getattr(network, "input_spec", None)
    if model.weights is not None:
        load_weights(network, model.weights)
        about = provenance.about_weights(model.weights)
        check_origin(about, task, f"{where}.weights: {model.weights}", classes=not own_classes)
        own = InputSpec(**about["input"]) if "input" in about else own
    return network, build_input_spec(model, own, where)


def check_origin(about: dict[str, Any], task: Task, file: str, *, classes: bool = True) -> None:
    """Raise UserError unless the weights of a run were trained for this task, these classes and this range of depth.

    Without `classes` only the task is compared.
    """
    if about.get("task", task.name) != task.name:
        raise UserError(f"{file} was trained for {about['task']}; the task here is {task.name}")
    if not classes:
        return
    trained = about.get("classes", task.classes)
    if task.classes != trained:
        raise UserError(
            f"{file} was trained for the classes {', '.join(trained)}; the data has {', '.join(task.classes)}"
        )
    arguments = provenance.plain(task.network_arguments)
    old = about.get("arguments", arguments)
    if old != arguments:
        raise UserError(
            f"{file} was trained with {old}; this recipe has {arguments}: make them equal"
        )


def build_input_spec(model: schema.Model, own: InputSpec | None, where: str) -> InputSpec:
    base = own or InputSpec()
    wish = {k: v for k, v in vars(model.input).items() if v is not None}
    try:
        spec = InputSpec(**{**base.as_dict(), **wish})
    except ValueError as error:
        raise UserError(f"{where}.input: {error}") from error
    if spec.channels != model.in_channels:
        raise UserError(
            f"{where}.input: mean and std have {spec.channels} values and in_channels is {model.in_channels}; "
            f"give {where}.input.mean and {where}.input.std with one value a channel"
        )
    return spec
