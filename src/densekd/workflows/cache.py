"""The sets of a run, decoded once (`data.cache`), with a progress bar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from densekd.build.settings import naming_settings
from densekd.config.schema import Config, Data
from densekd.data.cache.store import cached
from densekd.engine.launch import Process, available_cores
from densekd.ops.files import cache_folder

# Argument -> setting, for messages.
_NAMES = {
    "budget_gb": "data.cache_gb",
    "folder": "DENSEKD_CACHE",
    "folder=None": "data.cache: ram",
}


def cached_readers(
    config: Config, train: Any, val: Any, process: Process, stop: Callable[[], Any] | Any
) -> tuple[Any, Any]:
    """Training and validation set, decoded into memory or onto the disk, as the recipe says.

    On disk the processes of a run, and runs side by side, need no word with each other: one fills and the others wait.

    Args:
        stop: true once the user wants to stop; what is missing then is decoded when it is asked for.
    """
    data = config.data
    names = [_name(data, data.train_split, True), _name(data, data.val_split, False)]
    in_memory, main = data.cache == "ram", process.rank == 0
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def say(text: str) -> None:
            if main:
                console.print(text, highlight=False, markup=False, soft_wrap=True)

        def show(name: str, done: int, total: int) -> None:
            # Whoever fills the disk shows it; memory is filled by each process, and one bar is enough.
            if main or not in_memory:
                if name not in bars:
                    bars[name] = progress.add_task(f"decode {name}", total=total)
                progress.update(bars[name], completed=done)

        with naming_settings(_NAMES, "data.cache"):
            sets = cached(
                dict(zip(names, (train, val), strict=True)),
                folder=None if in_memory else cache_folder("images"),
                budget_gb=data.cache_gb,
                workers=available_cores() // (process.world_size if in_memory else 1),
                say=say,
                progress=show,
                stopped=lambda: stop,
            )
    return sets[names[0]], sets[names[1]]


def _name(data: Data, split: str, training: bool) -> str:
    """Of a set's folder: which set and split, and a digest of all that chooses its samples."""
    own = data.train_options if training else data.val_options
    # As it is spelt too: records know their files by the reader's own paths, and would replace each other.
    root = data.root and [data.root, str(Path(data.root).expanduser().resolve())]
    chosen = [data.dataset, split, root, data.options, own, training and data.allow_unlabelled]
    digest = hashlib.blake2b(json.dumps(chosen, default=str).encode(), digest_size=4).hexdigest()
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{data.dataset}-{split}")
    return f"{plain[-40:]}-{digest}"  # names of files end at 255 bytes
