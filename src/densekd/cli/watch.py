"""``densekd watch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from densekd.cli.arguments import parse


def command(arguments: list[str]) -> int:
    def watch(
        run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
        /,
        port: int = 8360,
    ) -> int:
        """Show a run in the browser while it trains: how far it is, its curves, scores, settings.

        The page is served on this machine alone (127.0.0.1) and renews itself. It reads the run's files and changes
        nothing, so it can be started and stopped at any time. Ctrl-C ends it.

        Args:
            run: folder of a run, an ablation or a demo.
            port: of the page; 0 takes a free one.
        """
        from densekd.workflows.watch import watch as serve

        def started(address: str) -> None:
            print(f"{run} at {address}  (Ctrl-C ends this, not the run)", flush=True)

        serve(run, port=port, started=started)
        return 0

    return parse(watch, "watch", arguments)
