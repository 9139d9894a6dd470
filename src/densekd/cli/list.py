"""``densekd list``."""

from __future__ import annotations

from typing import Literal

import tyro

from densekd.cli.arguments import parse
from densekd.config.load import list_configs
from densekd.config.names import DATASETS, LOSSES, MODELS, TASKS


def command(arguments: list[str]) -> int:
    def list_names(
        what: tyro.conf.Positional[Literal["models", "losses", "datasets", "tasks", "configs"]],
    ) -> int:
        """Names that a recipe can use. A dotted path of your own (package.module.Name) works in place of any.

        Args:
            what: which names.
        """
        if what == "configs":
            for name in list_configs():
                print(name)
            return 0
        table = {
            "models": MODELS,
            "losses": {
                **{k: v[0] for k, v in LOSSES.items()},
                "holistic": "densekd.losses.holistic",
            },
            "datasets": DATASETS,
            "tasks": TASKS,
        }[what]
        width = max(len(name) for name in table)
        for name, path in table.items():
            print(f"{name:<{width}}  {path}")
        return 0

    return parse(list_names, "list", arguments)
