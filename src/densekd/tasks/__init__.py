"""A task owns what differs between tasks: targets, supervised loss, decoding, metric, picture."""

from densekd.tasks.segmentation import Segmentation

__all__ = ["Segmentation"]
