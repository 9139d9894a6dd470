"""A run shown elsewhere: TensorBoard, Weights & Biases, MLflow, Trackio, or a tracker of one's own."""

from densekd.engine.trackers.base import About, Tracker
from densekd.engine.trackers.sender import Sender, numbers

__all__ = ["About", "Sender", "Tracker", "numbers"]
