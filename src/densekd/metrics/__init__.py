"""Exact metrics, counted over all ranks."""

from densekd.metrics.confusion import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
