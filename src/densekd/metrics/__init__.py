"""Exact metrics, counted over all ranks."""

from densekd.metrics.confusion import ConfusionMatrix
from densekd.metrics.depth import DepthMetrics

__all__ = ["ConfusionMatrix", "DepthMetrics"]
