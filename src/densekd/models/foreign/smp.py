"""Networks of segmentation-models-pytorch: ``{name: smp, options: {arch: DeepLabV3Plus, encoder: mobilenet_v2}}``."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from densekd.errors import UserError
from densekd.models.foreign._package import declare, package
from densekd.models.weights import load_weights
from densekd.ops.names import did_you_mean
from densekd.types import InputSpec

# Arguments of the library's classes that stand outside of `options`.
OURS = {"encoder_name", "encoder_weights", "in_channels", "classes", "kwargs"}


def smp(
    num_classes: int,
    *,
    arch: str,
    encoder: str = "resnet34",
    weights: str | None = None,
    backbone_weights: str | None = None,
    in_channels: int = 3,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """The library's own network, so that what is saved loads there with ``strict=True``.

    Args:
        arch: the class: Unet, FPN, DeepLabV3Plus, Segformer, ...; capitals do not count.
        encoder: the library's name, or ``tu-NAME`` for one of timm's.
        weights: a file of the whole network, or a folder that its ``save_pretrained`` wrote.
        backbone_weights: the library's name of the encoder's weights, such as ``imagenet``, which it downloads.
        options: more arguments of the class, such as ``{encoder_output_stride: 8}``.
    """
    library = package("segmentation_models_pytorch", "segmentation-models-pytorch", "smp")
    classes = library.MODEL_ARCHITECTURES_MAPPING
    if arch.lower() not in classes:
        names = [kind.__name__ for kind in classes.values()]
        raise UserError(f"arch {arch!r} is unknown; {did_you_mean(arch, names)}")
    known = library.encoders.get_encoder_names()
    if not encoder.startswith(("tu-", "timm-")) and encoder not in known:
        raise UserError(
            f"encoder {encoder!r} is unknown; {did_you_mean(encoder, known)} (of timm's: tu-NAME)"
        )
    if not encoder.startswith(("tu-", "timm-")):  # timm's encoders take timm's arguments too
        possible = set(inspect.signature(classes[arch.lower()]).parameters) - OURS
        for key in options or {}:
            if key not in possible:
                raise UserError(f"{arch} has no option {key!r}; {did_you_mean(key, possible)}")
    try:
        network = library.create_model(
            arch, encoder, backbone_weights, in_channels, num_classes, **(options or {})
        )
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"smp cannot build {arch} on {encoder} with backbone_weights {backbone_weights}: {error}"
        ) from error
    if weights is not None:
        load_weights(network, weights)
    spec = input_spec(library, encoder, backbone_weights, in_channels)
    return declare(network, spec, num_classes, "decoder")


def input_spec(library: Any, encoder: str, weights: str | None, channels: int) -> InputSpec:
    """What the encoder's weights were trained with; without such weights ImageNet's mean and std."""
    if channels != 3:
        return InputSpec(mean=(0.5,) * channels, std=(0.25,) * channels)
    if weights is None:
        return InputSpec()
    known = library.encoders.get_preprocessing_params(encoder, pretrained=weights)
    # The library scales to the range first, and takes mean and std off afterwards, as `InputSpec` does.
    return InputSpec(
        mean=known["mean"],
        std=known["std"],
        order=known["input_space"].lower(),
        range=float(known["input_range"][1]),
    )
