"""``densekd config``."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from densekd.cli.arguments import Recipe, parse, read_recipe, split_overrides
from densekd.config.code import code_named
from densekd.config.load import dump_config
from densekd.errors import UserError


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def config_command(
        action: tyro.conf.Positional[Literal["show", "validate"]],
        config: Recipe,
        run_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ) -> int:
        """Print a recipe with every default filled in, or check it (names, options, networks, terms).

        `validate` builds the networks and terms but reads no data and needs no weights. Neither imports what a recipe
        names by a dotted path (my_pkg.my_file.MyLoss), unless --run-code says that it may.

        Args:
            action: show or validate.
            config: a YAML file, or the name of a shipped recipe (densekd list configs).
            run_code: import and run the code that the recipe names.
        """
        settings = read_recipe(config, overrides, run_code)
        if action == "show":
            print(dump_config(settings), end="")
            return 0
        code = code_named(settings)
        if code and not run_code:
            raise UserError(
                f"{config} names code: {', '.join(code)}. To check it means to import and run that code; where you "
                "know it, add --run-code"
            )
        from densekd.workflows.validate import validate

        print(validate(settings))
        return 0

    return parse(config_command, "config", own)
