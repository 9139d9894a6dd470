"""The trackers of a recipe."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from densekd.build.resolve import TRACKER, resolve
from densekd.config import schema
from densekd.config.names import TRACKERS
from densekd.engine.trackers import About, Tracker
from densekd.errors import UserError

IMPORTED = {"tensorboard": "torch.utils.tensorboard"}  # name -> module; else of the name itself


def check_trackers(settings: schema.Train) -> None:
    """UserError for a name that is unknown or a package that is missing; no package is imported."""
    for name in _names(settings):
        resolve(name, TRACKERS, "train.trackers", TRACKER)
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise _missing(name)


def tracker_builders(settings: schema.Train) -> dict[str, Callable[[About], Tracker]]:
    """Name -> what opens the tracker, whose package is imported.

    Raises:
        UserError: an unknown name, or a package that is missing or cannot be imported.
    """
    check_trackers(settings)
    for name in _names(settings):
        if name not in TRACKERS:
            continue
        try:
            # Now and in this thread: the tracker's own must not import while loader processes are forked.
            importlib.import_module(IMPORTED.get(name, name))
        except Exception as error:  # a package that does not fit to the others may raise anything
            raise _missing(name, f" ({type(error).__name__}: {error})") from error
    return {name: resolve(name, TRACKERS, "train.trackers", TRACKER) for name in _names(settings)}


def _names(settings: schema.Train) -> list[str]:
    return list(
        dict.fromkeys([*settings.trackers, *(["tensorboard"] if settings.tensorboard else [])])
    )


def _missing(name: str, why: str = "") -> UserError:
    return UserError(f"train.trackers: {name} needs the extra{why}: pip install 'densekd[{name}]'")
