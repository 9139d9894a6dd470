"""One image's answer as files: class indices, metres in 16 bits, boxes, and pictures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from densekd.ops.files import open_atomic
from densekd.tasks import Task

OVERLAY = 0.5  # the share of the classes' colours in an overlay
# Values of a 16-bit PNG for one metre: millimetres, or metres / 256 (KITTI's) where millimetres do not reach.
PER_METRE = (1000, 256, 16, 1)
LARGEST = 2**16 - 1

Draw = Callable[[Task, np.ndarray, Any], np.ndarray]  # task, (H, W, 3) image, answer -> pixels


def index(task: Task, image: np.ndarray, answer: Any) -> np.ndarray:
    """(H, W) uint8 class of each pixel, uint16 above 256 classes."""
    return np.asarray(answer).astype(np.uint8 if len(task.classes) <= 256 else np.uint16)


def colour(task: Task, image: np.ndarray, answer: Any) -> np.ndarray:
    """(H, W, 3) the answer in the task's own colours."""
    return task.picture(image, answer)


def overlay(task: Task, image: np.ndarray, answer: Any) -> np.ndarray:
    """(H, W, 3) image and colours mixed."""
    mixed = (1 - OVERLAY) * image + OVERLAY * task.picture(image, answer)
    return mixed.round().astype(np.uint8)


def drawn(task: Task, image: np.ndarray, answer: Any) -> np.ndarray:
    """(H, W, 3) the image with its boxes."""
    return task.picture(image, SimpleNamespace(**answer))


def metres(task: Task, image: np.ndarray, answer: Any) -> np.ndarray:
    """(H, W) uint16 depth times `per_metre`; 0 is never written, since it means unknown."""
    low, high = getattr(task, "range", (0.0, np.inf))
    depth = np.nan_to_num(np.asarray(answer, np.float64), nan=low, posinf=high)
    return np.clip(np.round(np.clip(depth, low, high) * per_metre(task)), 1, LARGEST).astype(
        np.uint16
    )


def per_metre(task: Task) -> int:
    """How many values of a depth PNG are one metre: as fine as the task's range allows."""
    farthest = getattr(task, "range", (0.0, 10.0))[1]
    return next((n for n in PER_METRE if farthest * n <= LARGEST), PER_METRE[-1])


# Task -> folder's name -> what is drawn there. A task of one's own has the picture that it draws itself.
PICTURES: Mapping[str, Mapping[str, Draw]] = {
    "segmentation": {"index": index, "colour": colour, "overlay": overlay},
    "detection": {"drawn": drawn},
    "depth": {"metres": metres, "colour": colour},
}
OF_ANY_TASK: Mapping[str, Draw] = {"colour": colour}


def save_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG that appears whole or not at all."""
    with open_atomic(path, "wb") as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 of any number of channels -> (H, W, 3)."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]


def coco_boxes(task: Task, answer: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Boxes as COCO's results have them, without the number of the image; corners become x, y, width, height."""
    ids = getattr(task, "category_ids", None) or list(range(1, len(task.classes) + 1))
    found = []
    for (x0, y0, x1, y1), score, label in zip(
        answer["boxes"].tolist(), answer["scores"].tolist(), answer["labels"].tolist(), strict=True
    ):
        box = [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)]
        found.append({"category_id": ids[label], "bbox": box, "score": round(score, 5)})
    return found


def join_boxes(task: Task, images: Mapping[str, Mapping[str, Any]]) -> tuple[list[Any], Any]:
    """COCO's results of all images, and the list of images and categories that their numbers refer to.

    An image's number is the number in its file's name (``000000000139.jpg``) where all names have different ones,
    else its place in the order of names, from 1.

    Args:
        images: file name -> ``{"width", "height", "boxes": [...]}``.
    """
    names = sorted(images)
    stems = [Path(name).stem for name in names]
    numbers = [int(s) for s in stems if s.isascii() and s.isdigit()]
    if len(set(numbers)) != len(names):
        numbers = list(range(1, len(names) + 1))
    ids = getattr(task, "category_ids", None) or list(range(1, len(task.classes) + 1))
    listed = {
        "images": [
            {"id": k, "file_name": n, "width": images[n]["width"], "height": images[n]["height"]}
            for k, n in zip(numbers, names, strict=True)
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(ids, task.classes, strict=True)],
    }
    results = [
        {"image_id": k, **box}
        for k, n in zip(numbers, names, strict=True)
        for box in images[n]["boxes"]
    ]
    return results, listed
