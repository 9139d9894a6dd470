"""``densekd list``."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import tyro

from densekd.cli.arguments import parse
from densekd.config.load import list_configs
from densekd.config.names import DATASETS, TASKS
from densekd.workflows.lists import list_losses, list_models, model_lines


def command(arguments: list[str]) -> int:
    def list_names(
        what: tyro.conf.Positional[Literal["models", "losses", "datasets", "tasks", "configs"]],
        as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Names that a recipe can use. A dotted path of your own (package.module.Name) works in place of any.

        Args:
            what: which names. Of networks also the task, millions of parameters with default options (empty where
                an option such as backbone must be chosen first), the feature that pair-wise terms compare by default
                with its stride, and the weights that are to be had besides those of your own runs.
            as_json: print JSON, with the dotted path of each.
        """
        if as_json:
            rows = {"models": list_models, "losses": list_losses}
            others = {"datasets": DATASETS, "tasks": TASKS, "configs": list_configs()}
            print(
                json.dumps(
                    [vars(r) for r in rows[what]()] if what in rows else others[what], indent=2
                )
            )
            return 0
        if what == "models":
            print("\n".join(model_lines()))
            return 0
        if what == "configs":
            for name in list_configs():
                print(name)
            return 0
        table = {
            "losses": {row.name: row.path for row in list_losses()},
            "datasets": DATASETS,
            "tasks": TASKS,
        }[what]
        width = max(len(name) for name in table)
        for name, path in table.items():
            print(f"{name:<{width}}  {path}")
        return 0

    return parse(list_names, "list", arguments)
