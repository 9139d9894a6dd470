"""Weights & Biases."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from densekd.engine.trackers.base import PROJECT, About


class WandB:
    """One run of W&B. Its own variables hold: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, WANDB_DIR, WANDB_API_KEY."""

    overwrites = False

    def __init__(self, about: About) -> None:
        import wandb

        self.id = about.id or secrets.token_hex(4)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=about.name,
            id=self.id,
            resume="allow",
            reinit="create_new",  # a run of W&B around this one stays as it is
            config=dict(about.config),
            allow_val_change=True,  # steps may grow when a run goes on
            dir=os.environ.get("WANDB_DIR") or str(about.folder),
            # The terminal is the run's: nothing of it is caught, and no question waits in it for long.
            settings=wandb.Settings(console="off", login_timeout=1),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, final: Mapping[str, float] | None) -> None:
        self.run.summary.update(dict(final or {}))
        self.run.finish(exit_code=1 if final is None else 0)
