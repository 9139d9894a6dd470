"""`config validate`: build everything a recipe names, without data, weights or training."""

from __future__ import annotations

from dataclasses import replace

import torch

from densekd.config import build
from densekd.config.schema import Config
from densekd.profiling import count_macs, count_parameters

# Stands in where only the data set knows the number of classes.
CLASSES = 19


def validate(config: Config) -> str:
    """Names, options, networks and terms; returns a line a network. UserError says what is wrong."""
    build.resolve(config.data.dataset, build.DATASETS, "data.dataset")
    size = config.data.crop or (128, 256)
    lines = []
    networks = []
    for where, model in (("model", config.model), ("teacher", config.teacher)):
        if model is None:
            continue
        options = dict(model.options)
        if "backbone_weights" in options:
            options["backbone_weights"] = None
        bare = replace(model, weights=None, options=options)
        network, _ = build.build_network(bare, CLASSES, where)
        networks.append(network)
        macs = count_macs(network, model.in_channels, size)
        lines.append(
            f"{where}: {model.name}, {count_parameters(network) / 1e6:.3f} M parameters, "
            f"{macs / 1e9:.3f} G MACs at {size[0]}x{size[1]} with {CLASSES} classes"
        )
    if len(networks) == 2:
        terms, *_ = build.build_terms(config.distill, networks[0], networks[1])
        for term in terms:
            lines.append(
                f"{term.name}: weight {term.weight}, student {term.student}, teacher {term.teacher}"
            )
    if config.distill.holistic is not None:
        build.build_adversary(
            config.distill.holistic, CLASSES, config.model.in_channels, torch.device("cpu")
        )
        lines.append(
            f"holistic: weight {config.distill.holistic.weight}, {config.distill.holistic.mode}"
        )
    return "\n".join([*lines, "valid"])
