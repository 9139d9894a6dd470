"""``densekd config``."""

from __future__ import annotations

from typing import Literal

import tyro

from densekd.cli.arguments import Recipe, parse, read_recipe, split_overrides
from densekd.config.load import dump_config


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def config_command(
        action: tyro.conf.Positional[Literal["show", "validate"]],
        config: Recipe,
    ) -> int:
        """Print a recipe with every default filled in, or check it (names, options, networks, terms).

        `validate` builds the networks and terms but reads no data and needs no weights.

        Args:
            action: show or validate.
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
        """
        settings = read_recipe(config, overrides)
        if action == "show":
            print(dump_config(settings), end="")
            return 0
        from densekd.workflows.validate import validate

        print(validate(settings))
        return 0

    return parse(config_command, "config", own)
