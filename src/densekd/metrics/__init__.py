"""Exact metrics, counted over all ranks."""

from densekd.metrics.average_precision import AveragePrecision
from densekd.metrics.calibration import Calibration
from densekd.metrics.confusion import ConfusionMatrix
from densekd.metrics.depth import DepthMetrics

__all__ = ["AveragePrecision", "Calibration", "ConfusionMatrix", "DepthMetrics"]
