"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from densekd.engine.trackers.base import About


class TensorBoard:
    """Event files in ``RUN/tensorboard``; ``tensorboard --logdir runs`` shows them."""

    overwrites = True

    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = "tensorboard"
        # Steps after the checkpoint are done again: TensorBoard forgets their first values.
        self.writer = SummaryWriter(str(about.folder / "tensorboard"), purge_step=about.start + 1)
        self.last = about.start
        if about.id is None:
            lines = yaml.safe_dump(dict(about.config), sort_keys=False).splitlines()
            self.writer.add_text("config", "\n".join(f"    {line}" for line in lines), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.last = max(self.last, step)

    def finish(self, final: Mapping[str, float] | None) -> None:
        for name, value in (final or {}).items():
            self.writer.add_scalar(name, value, self.last)
        self.writer.close()
