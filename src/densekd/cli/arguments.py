"""What the commands share: dotted overrides apart, the rest by tyro."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from densekd.config.load import load_config, setting_names
from densekd.config.names import TASKS
from densekd.config.schema import Config
from densekd.config.tree import read_overrides
from densekd.errors import UserError
from densekd.workflows.recipe import say_code


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take ``--section.key value`` and ``--section.key=value`` out of the words of a command."""
    own: list[str] = []
    dotted: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        key = word.partition("=")[0]
        if word.startswith("--") and "." in key:
            dotted.append(word)
            if "=" not in word and words:
                dotted.append(words.pop(0))
        else:
            own.append(word)
    return own, read_overrides(dotted)


Recipe = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]


def parse(
    function: Callable[..., Any], name: str, arguments: list[str], description: str | None = None
) -> Any:
    """Call `function` with its arguments parsed by tyro (--help exits here).

    Args:
        description: replaces the function's own docstring in --help.
    """
    _point_to_settings(function, name, arguments)
    if os.environ.get("NO_COLOR"):  # https://no-color.org; rich obeys it by itself
        tyro._experimental_options["ansi_codes"] = False
    return tyro.cli(function, prog=f"densekd {name}", args=arguments, description=description)


def _point_to_settings(function: Callable[..., Any], name: str, arguments: list[str]) -> None:
    """``--steps 5`` is nearly right: say that the setting is ``--train.steps``."""
    own = set(inspect.signature(function).parameters)
    if "config" not in own:  # the command takes no recipe, so no settings
        return
    for word in arguments:
        key = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if not word.startswith("--") or key in own:
            continue
        near = _settings_called(key)
        if near:
            raise UserError(
                f"{word.partition('=')[0]} is no option of densekd {name}; "
                f"settings are given with their section: --{' or --'.join(near)}"
            )


def _settings_called(key: str) -> list[str]:
    if key == "task":
        return ["task.name"]
    near = [dotted for dotted in setting_names() if dotted.rpartition(".")[2] == key]
    if near or key == "help":
        return near
    from densekd.build.task import task_setting_names

    return [dotted for dotted in task_setting_names() if dotted.rpartition(".")[2] == key]


def read_recipe(
    config: str, overrides: dict[str, Any], run_code: bool = True, **given: Any
) -> Config:
    """A recipe with overrides; `given` are plain options that stand for a setting (None: not given).

    Where it names code, that is said before any of it is imported; without `run_code` nothing is.
    """
    extra = {key.replace("__", "."): value for key, value in given.items() if value is not None}
    settings = load_config(config, {**overrides, **extra})
    if run_code:
        say_code(settings, config)
    if settings.task.name not in TASKS and not run_code:
        return settings
    if settings.task.options or settings.task.name not in TASKS:
        # Every command says what is wrong with the task's settings, whether or not it builds the task.
        from densekd.build.task import check_task

        check_task(settings.task)
    return settings


def recipe_for_model(recipe: str | None, overrides: dict[str, Any]) -> Config | None:
    """The recipe beside a MODEL; settings without a recipe are a mistake."""
    if recipe is None and overrides:
        raise UserError(
            f"--{next(iter(overrides))} is a setting of a recipe, and none is given; add --recipe RECIPE"
        )
    return None if recipe is None else read_recipe(recipe, overrides)


def command_line() -> str:
    """How this process was started, to be repeated."""
    world = os.environ.get("WORLD_SIZE")
    launcher = f"torchrun --nproc-per-node {world} -m " if world and int(world) > 1 else ""
    return launcher + shlex.join(["densekd", *sys.argv[1:]])
