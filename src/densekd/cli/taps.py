"""``densekd taps``."""

from __future__ import annotations

import json
from typing import Annotated

import tyro

from densekd.cli.arguments import parse, split_overrides

What = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL|RECIPE|FILE")]


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def taps(
        what: What,
        size: tuple[int, int] | None = None,
        json: bool = False,
    ) -> int:
        """List the tensors inside a network that a term can compare, with the sensible ones marked.

        What is listed goes into a recipe as distill.TERM.student and distill.TERM.teacher.

        A network that is named alone takes its options as settings: densekd taps fpn_timm --model.options.backbone
        resnet18. Of a recipe the model and the teacher are listed. Weights are not needed.

        Args:
            what: a name (densekd list models) or dotted path, a recipe, a weights file, a run's folder, or an id on the
                Hugging Face hub (owner/name).
            size: height and width of the image that is passed through; by default what the network was made for, or
                256 256.
            json: print JSON.
        """
        return print_taps(what, overrides, size, json)

    return parse(taps, "taps", own)


def print_taps(
    what: str, overrides: dict[str, object], size: tuple[int, int] | None, as_json: bool
) -> int:
    # Imported here, so that --help answers without torch.
    from densekd.workflows.taps import tap_tables, text

    tables = tap_tables(what, overrides, size)
    if as_json:
        print(json.dumps([table.as_dict() for table in tables], indent=2))
    else:
        print("\n\n".join(text(table) for table in tables))
    return 0
