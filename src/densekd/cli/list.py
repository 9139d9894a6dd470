"""``densekd list``."""

from __future__ import annotations

from typing import Literal

import tyro

from densekd.cli.arguments import parse
from densekd.config.load import list_configs
from densekd.config.names import DATASETS, TASKS
from densekd.workflows.lists import list_losses, list_models


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
            "models": {row.name: row.path for row in list_models()},
            "losses": {row.name: row.path for row in list_losses()},
            "datasets": DATASETS,
            "tasks": TASKS,
        }[what]
        width = max(len(name) for name in table)
        for name, path in table.items():
            print(f"{name:<{width}}  {path}")
        return 0

    return parse(list_names, "list", arguments)
