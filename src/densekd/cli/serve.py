"""``densekd serve``."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from densekd.cli.arguments import parse, recipe_for_model, split_overrides


def command(arguments: list[str]) -> int:
    own, overrides = split_overrides(arguments)

    def serve(
        models: Annotated[tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="MODEL...")],
        /,
        names: tuple[str, ...] = (),
        port: int = 8361,
        host: str = "127.0.0.1",
        max_side: int = 2048,
        recipe: str | None = None,
        best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        trusted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
        device: str = "auto",
    ) -> int:
        """Try networks in the browser: drop an image or use the camera, and see the student beside its teacher.

        The page shows the image, each network's answer, its time and size. It is served on this machine alone, keeps
        images in memory and writes no file. Ctrl-C ends it. It needs the extra `serve`.

        Args:
            models: the student, then its teacher, and more to compare: folders of runs, weights files, FILE@RECIPE,
                exported files.
            names: a title a model; by default the names of the files or runs.
            port: of the page; 0 takes a free one.
            host: the address to listen on. With another than this machine's own (0.0.0.0) everybody in the network can
                send images, without a password.
            max_side: images of a longer side are made smaller before networks see them; the page offers smaller ones.
            recipe: recipe of the networks, for weights files that do not say which one they are of (.pth).
            best: of runs, the weights that scored best.
            trusted: allow a file to name a network outside of densekd, or to hold a program of its own (.pt2), whose
                code is then run.
            device: auto, cpu, cuda, cuda:N or mps.
        """
        config = recipe_for_model(recipe, overrides)
        from densekd.report.serve import check_packages, is_local, joined
        from densekd.workflows import serve as workflow
        from densekd.workflows.open_model import model_titles, open_models

        check_packages()
        loaded = open_models(models, config, best=best, device=device, trusted=trusted)
        titles = model_titles(models, names)

        def started(address: str) -> None:
            print(f"{joined(titles)} at {address}  (Ctrl-C ends this)", flush=True)
            if not is_local(host):
                print(
                    f"warning: --host {host}: everybody in the network can send images to this page",
                    file=sys.stderr,
                    flush=True,
                )

        workflow.serve(loaded, titles, host=host, port=port, most_side=max_side, started=started)
        return 0

    return parse(serve, "serve", own)
