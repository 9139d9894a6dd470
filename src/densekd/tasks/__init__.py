"""A task owns what differs between tasks: targets, supervised loss, decoding, metric, picture."""

from densekd.tasks.base import Column, Metric, Task
from densekd.tasks.depth import Depth
from densekd.tasks.segmentation import Segmentation

__all__ = ["Column", "Depth", "Metric", "Segmentation", "Task"]
