"""What the colours of one answer mean, and how far the answers of several networks agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from densekd.tasks import Task
from densekd.tasks.depth import Depth
from densekd.tasks.detection import Detection
from densekd.tasks.segmentation import Segmentation

SMALLEST = 5e-4  # share of the pixels from which a class is named
STEPS = 9  # colours of a scale


def hex_colour(rgb: Sequence[int]) -> str:
    return "#" + "".join(f"{int(v):02x}" for v in rgb)


def legend(task: Task, answer: Any) -> dict[str, Any]:
    """The legend of one answer, as plain values.

    Args:
        answer: as `LoadedModel.predict` gives it.

    Returns:
        ``entries``: name, colour and value of each class that was found; ``scale``: colours from one end to the other
        (depth), or None; ``text``: a remark, or "".
    """
    entries: list[dict[str, str]] = []
    scale, text = None, ""
    if isinstance(task, Segmentation):
        counts = np.bincount(np.asarray(answer).ravel().astype(np.int64))[: len(task.classes)]
        for label, share in enumerate(counts / max(1, np.asarray(answer).size)):
            if share >= SMALLEST:
                colour = hex_colour(task.palette[label])
                value = f"{100 * share:.1f} %"
                entries.append({"name": task.classes[label], "colour": colour, "value": value})
    elif isinstance(task, Detection):
        shown = np.asarray(answer["scores"]) >= task.shown_above
        counts = np.bincount(np.asarray(answer["labels"])[shown].astype(np.int64))
        for label in np.flatnonzero(counts):
            colour = hex_colour(task.palette[label])
            entries.append(
                {"name": task.classes[label], "colour": colour, "value": f"× {counts[label]}"}
            )
        text = "" if entries else f"no box with a score of {task.shown_above:g} or more"
    elif isinstance(task, Depth):
        low, high = task.range
        ramp = np.geomspace(low, high, STEPS, dtype=np.float32)[None]
        colours = task.picture(np.zeros((1, STEPS, 3), np.uint8), ramp)[0]
        scale = {
            "from": f"{low:g} m",
            "to": f"{high:g} m",
            "colours": [hex_colour(rgb) for rgb in colours],
        }
        depth = np.asarray(answer, np.float32)
        near, middle, far = np.nanpercentile(depth, (1, 50, 99))
        text = f"{near:.2g} to {far:.2g} m in this image, median {middle:.2g} m"
    return {"entries": entries, "scale": scale, "text": text}


def agreement(tasks: Sequence[Task], answers: Sequence[Any]) -> str:
    """A sentence on two answers of one size and of equal classes; "" where they cannot be compared."""
    if len(answers) != 2 or list(tasks[0].classes) != list(tasks[1].classes):
        return ""
    first, second = answers
    if all(isinstance(task, Segmentation) for task in tasks):
        return f"They give the same class at {100 * np.mean(np.asarray(first) == second):.1f} % of the pixels."
    if all(isinstance(task, Depth) for task in tasks):
        apart = np.nanmedian(np.abs(np.asarray(first) - second) / np.maximum(second, 1e-6))
        return f"Half of their depths lie within {100 * apart:.1f} % of each other."
    return ""
