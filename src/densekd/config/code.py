"""What of a recipe is code: the dotted paths in it, which are imported and called."""

from __future__ import annotations

from collections.abc import Collection

from densekd.config.names import DATASETS, LOSSES, MODELS, TASKS, TRACKERS
from densekd.config.schema import Config


def code_named(config: Config) -> list[str]:
    """``["model.name my_network.Net", ...]``: every setting that names an object outside of densekd."""
    named: list[tuple[str, str, Collection[str]]] = [
        ("task.name", config.task.name, TASKS),
        ("model.name", config.model.name, MODELS),
        ("data.dataset", config.data.dataset, DATASETS),
    ]
    named += [
        (f"{key}.name", section.name, MODELS) for key, section in config.every_teacher.items()
    ]
    if config.data.unlabelled is not None and config.data.unlabelled.dataset is not None:
        named.append(("data.unlabelled.dataset", config.data.unlabelled.dataset, DATASETS))
    for name, term in config.distill.terms.items():
        named.append((f"distill.{name}.loss", term.loss or name, LOSSES))
    named += [("train.trackers", name, TRACKERS) for name in config.train.trackers]
    return [f"{key} {name}" for key, name, table in named if name not in table and "." in name]
