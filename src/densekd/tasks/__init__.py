"""A task owns what differs between tasks: targets, supervised loss, decoding, metric, picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from densekd.tasks.base import Column, Metric, Task
from densekd.tasks.depth import Depth
from densekd.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from densekd.tasks.detection import Detection

__all__ = ["Column", "Depth", "Detection", "Metric", "Segmentation", "Task"]


def __getattr__(name: str) -> Any:
    # torchvision's operators take as long to import as all the rest: only for those who ask.
    if name == "Detection":
        from densekd.tasks.detection import Detection

        return Detection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
