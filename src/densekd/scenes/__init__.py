"""Procedural street scenes with exact labels, boxes and metric depth: the embedded default data.

`render_scene(seed, index)` gives one scene; `write_cityscapes` writes many in a real data set's
layout, so that the real readers read them.
"""

from densekd.scenes.classes import (
    BOX_CLASSES,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_TRAIN_IDS,
    CLASSES,
    IGNORE,
    PALETTE,
)
from densekd.scenes.export import write_cityscapes
from densekd.scenes.render import Scene, render_scene

__all__ = [
    "BOX_CLASSES",
    "CITYSCAPES_LABEL_IDS",
    "CITYSCAPES_TRAIN_IDS",
    "CLASSES",
    "IGNORE",
    "PALETTE",
    "Scene",
    "render_scene",
    "write_cityscapes",
]
