"""A network of a recipe with its weights, and what it wants to see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densekd.build import provenance
from densekd.build.resolve import NETWORK, accepts, call, parameters, resolve
from densekd.config import schema
from densekd.config.names import MODELS, TEACHERS_ONLY
from densekd.errors import UserError, WeightsError, first_line
from densekd.models.finite import check_finite
from densekd.models.foreign.hf import adopt, fill
from densekd.models.weights import load_weights
from densekd.rewrite import is_int8, to_int8
from densekd.tasks import Task
from densekd.types import InputSpec

# Stands before the class of a network that was given as an object and has no name in a recipe.
GIVEN = "object:"
EXAMPLE = (192, 256)  # (height, width) of an image that a network is tried on where it names none


def build_network(
    model: schema.Model,
    task: Task,
    where: str,
    *,
    num_classes: int | None = None,
    given: nn.Module | None = None,
) -> tuple[nn.Module, InputSpec]:
    """The bare network with its weights, and what it wants to see.

    Weights that a run wrote know their task, classes and input: another task, other classes or another range of
    depth are errors, and their input holds where the recipe does not set one.

    Args:
        num_classes: what the network predicts, where that is not what the task does.
        given: the network itself, which no name stands for; it is taken as it is.
    """
    if given is not None:
        spec = build_input_spec(model, getattr(given, "input_spec", None), where)
        if model.int8:
            round_layers(given, spec, where)
        return given, spec
    if model.name.startswith(GIVEN):
        raise UserError(
            f"{where}.name: {model.name!r} was given as a Python object, which no recipe can build; call densekd.train "
            "or densekd.distill with such an object again"
        )
    own_classes = {} if num_classes is None else {"num_classes": num_classes}
    builder = resolve(model.name, MODELS, f"{where}.name", NETWORK)
    if model.name in TEACHERS_ONLY and not where.startswith("teacher"):
        raise UserError(
            f"{where}.name: {model.name!r} is a frozen program; it can only be a teacher"
        )
    options = dict(model.options)
    pretrained = is_pretrained(builder)
    if model.weights is not None and not pretrained:
        # The whole network's weights replace them: do not fetch.
        for key in ("backbone_weights", *(["weights"] if model.name in MODELS else [])):
            if accepts(builder, key):
                options[key] = None
    arguments = {"in_channels": model.in_channels, **task.network_arguments, **own_classes}
    if pretrained:
        extra = pretrained_arguments(builder, options, task, teacher=where.startswith("teacher"))
    else:
        extra = with_class_count(builder, options, arguments)
    network = call(builder, options, f"{where}.options", **extra)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{where}.name: {model.name!r} gave {type(network).__name__}, not an nn.Module"
        )
    if pretrained:
        adopt(network, options.get(PRETRAINED))
    if model.prediction is not None:
        setattr(network, "prediction_path", model.prediction)  # noqa: B010 - typed as a module
    own = getattr(network, "input_spec", None)
    rounds = False
    if model.weights is not None:
        about = provenance.about_weights(model.weights)
        rounds = about.get("model", {}).get("int8", False) is True
        if rounds and not model.int8:
            raise UserError(
                f"{where}.weights: {model.weights} was trained to be int8; set {where}.int8 true, or take the float "
                "weights that it began with"
            )
        if rounds:
            round_layers(network, own, where)
        if Path(model.weights).is_dir() and hasattr(network, "config_class"):
            fill(network, model.weights)
        else:
            # A file of a run has the network's own keys, whatever file the run began with.
            load_weights(
                network,
                model.weights,
                prefix="" if about else model.weights_prefix,
                ignore=() if about else model.weights_ignore,
            )
        check_origin(about, task, f"{where}.weights: {model.weights}", classes=not own_classes)
        own = _stored_input(about, model.weights) if "input" in about else own
    if model.int8 and not rounds:
        round_layers(network, own, where)
    check_finite(
        network,
        f"{where}.weights: {model.weights}" if model.weights else f"{where}.name: {model.name}",
    )
    return network, build_input_spec(model, own, where)


def round_layers(network: nn.Module, spec: InputSpec | None, where: str) -> None:
    """Make a network round as an int8 file does; UserError where there is nothing to round or it does not run.

    One that rounds already, an object that a run before this one trained, stays as it is.
    """
    if is_int8(network):
        return
    spec = spec or InputSpec()
    draw = torch.Generator().manual_seed(0)
    try:
        layers = to_int8(
            network, torch.rand(1, spec.channels, *(spec.size or EXAMPLE), generator=draw)
        )
    except (RuntimeError, ValueError, TypeError) as error:
        height, width = spec.size or EXAMPLE
        raise UserError(
            f"{where}.int8: the network does not run on an image of {height}x{width}, with which its norms are folded: "
            f"{first_line(error)}"
        ) from error
    if not layers:
        raise UserError(
            f"{where}.int8: the network has no convolution and no linear layer that could round; leave it out"
        )


def _stored_input(about: dict[str, Any], file: str) -> InputSpec:
    try:
        return InputSpec(**about["input"])
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{file}: what it says of its input is damaged ({error}); copy the file again"
        ) from error


# Other libraries' names for the number of classes.
CLASS_COUNT = ("classes", "num_labels", "n_classes")
PRETRAINED = "pretrained_model_name_or_path"  # the argument of every from_pretrained


def is_pretrained(builder: Callable[..., Any]) -> bool:
    """Whether a builder is some ``Class.from_pretrained``, which loads weights and says itself what it builds."""
    return getattr(builder, "__name__", "") == "from_pretrained"


def pretrained_arguments(
    builder: Callable[..., Any], options: Mapping[str, Any], task: Task, *, teacher: bool
) -> dict[str, Any]:
    """A student of transformers gets the task's number of classes, and a new classifier where the file has another.

    A teacher stays as it was trained, and other libraries are given nothing.
    """
    owner = getattr(builder, "__self__", None)
    of_transformers = str(getattr(owner, "__module__", "")).startswith("transformers.")
    if teacher or not of_transformers or not task.classes or "num_labels" in options:
        return {}
    return {"num_labels": len(task.classes), "ignore_mismatched_sizes": True}


def with_class_count(
    builder: Callable[..., Any], options: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The task's arguments, with ``num_classes`` under the name that the builder has for it.

    A number that the recipe's options give stays; the dry run says so if it is not the task's.
    """
    given = dict(arguments)
    known = parameters(builder)
    if "num_classes" in given and "num_classes" not in known:
        for name in CLASS_COUNT:
            if name in known:
                count = given.pop("num_classes")
                return given if name in options else {**given, name: count}
    return given


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
