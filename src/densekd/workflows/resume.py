"""Which settings a run may change when it goes on."""

from __future__ import annotations

from typing import Any

import yaml

from densekd.config.load import dump_config, make_config, to_tree
from densekd.config.schema import Config
from densekd.config.tree import flatten, parse_yaml
from densekd.engine.folder import RunFolder
from densekd.errors import UserError

STEPS = "train.steps"  # may grow
RESTORE = "restore it (densekd config show, with the settings of command.txt, prints it), or start under another --name"

# May differ between a run and its continuation: they change where files are and what is written, not what is learned.
FREE_ON_RESUME = {
    "data.root", "data.unlabelled.root", "data.workers", "data.cache_gb", "data.on_bad_file",
    "train.log_every", "train.save_every", "train.evaluate_every", "train.tensorboard", "train.trackers",
    "evaluate.batch_size", "note",
    "distill.teacher_cache.folder", "distill.teacher_cache.disk_gb",
}  # fmt: skip


def changed_settings(folder: RunFolder, config: Config) -> list[str]:
    """Settings in which `config` differs from the one the folder was started with, as ``key: old -> new``."""
    if not folder.config.exists():
        return []
    tree = settings_of(folder)
    try:
        # A run of an older version says nothing of settings that are newer; they had their default.
        old = flatten(to_tree(make_config(tree, str(folder.config))))
    except UserError:
        old = flatten(tree)
    new = flatten(yaml.safe_load(dump_config(config)))
    # From the host's cache samples come as from their files; the device's are equal up to rounding only.
    for settings in (old, new):
        settings["data.cache"] = "device" if settings.get("data.cache") == "device" else None
    keys = [k for k in {**old, **new} if k not in FREE_ON_RESUME and old.get(k) != new.get(k)]
    if more_steps(folder, config) is not None:
        keys.remove(STEPS)
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in keys]


def more_steps(folder: RunFolder, config: Config) -> int | None:
    """The number of steps that the folder's run was to have, where `config` wants more; else None."""
    if not folder.config.exists():
        return None
    old = flatten(settings_of(folder)).get(STEPS)
    return old if isinstance(old, int) and config.train.steps > old else None


def settings_of(folder: RunFolder) -> dict[str, Any]:
    """What the folder's config.yaml says."""
    try:
        text = folder.config.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.config} cannot be read ({error}); {RESTORE}") from error
    settings = parse_yaml(text, str(folder.config))
    if not isinstance(settings, dict):
        raise UserError(f"{folder.config} is damaged: it holds no settings; {RESTORE}")
    return settings
