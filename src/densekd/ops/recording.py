"""How a block tells the recorder of a forward pass that its result can be computed again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor


class Recorder(Protocol):
    """The object that `densekd.rewrite.recompute_norms` keeps while it is on."""

    def find(self, tensor: Any) -> Any:
        """How `tensor` is made, or None where it is kept as it is."""
        ...

    def note(self, result: Tensor, function: Callable[..., Tensor], given: Sequence[Any]) -> Any:
        """Remember that `result` is ``function(*given)``."""
        ...


class _Recording(threading.local):
    def __init__(self) -> None:
        self.recorder: Recorder | None = None


recording = _Recording()


def made_from(given: Sequence[Any], function: Callable[..., Tensor], result: Tensor) -> None:
    """Tell the recorder, if there is one, that `result` is ``function(*given)``, and that `given` is kept anyway."""
    recorder = recording.recorder
    if recorder is not None and recorder.find(given[0]) is None:
        recorder.note(result, function, given)
