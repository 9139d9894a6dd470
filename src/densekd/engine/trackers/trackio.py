"""Trackio."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

from densekd.engine.trackers.base import PROJECT, About


class Trackio:
    """One run of Trackio. Its own variables hold: TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL; and
    TRACKIO_PROJECT names the project.

    Trackio knows a run by its name, which two run folders may share; so a few letters follow it.
    """

    overwrites = False

    def __init__(self, about: About) -> None:
        import trackio

        self.id = about.id or f"{about.name.replace('/', '-')}-{secrets.token_hex(2)}"
        self.last = about.start
        config: dict[str, Any] = dict(about.config)
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=self.id,
            resume="allow",
            config=config,
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)
        self.last = max(self.last, step)

    def finish(self, final: Mapping[str, float] | None) -> None:
        if final:
            self.run.log(dict(final), step=self.last)
        self.run.finish()
