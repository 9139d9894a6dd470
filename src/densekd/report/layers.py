"""The pictures of a report: the photo, the truth and the answers as small data URIs, boxes as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from densekd.report.answers import as_rgb
from densekd.tasks import Task
from densekd.tasks.depth import Depth
from densekd.tasks.detection import Detection, to_numpy
from densekd.tasks.segmentation import Segmentation

# A page stays below 3 MB; base64 makes 4 bytes of 3, and text needs room.
ROOM = 1_900_000  # bytes of all pictures of a page
WIDTHS = (640, 512, 400, 320, 240, 160)
# Relative error of a depth at which its colour ends.
WORST_ERROR = 0.5
WRONG = (214, 40, 40)  # of a wrong pixel


@dataclass(frozen=True)
class Layer:
    """One picture of an image.

    Attributes:
        name: what it shows; the same for all images.
        pixels: (H, W, 3 or 4) uint8, or None where `svg` has the drawing.
        photo: whether its colours may blend: the image itself, and what is drawn smoothly.
    """

    name: str
    pixels: np.ndarray | None = None
    svg: Markup | None = None
    photo: bool = False


@dataclass(frozen=True)
class Shown:
    """An image with its layers, as the page has them.

    Attributes:
        layers: (name, data URI or None, SVG or None, whether it is a class map).
    """

    name: str
    why: str
    size: tuple[int, int]
    scores: list[tuple[str, str]]
    layers: list[tuple[str, str | None, Markup | None, bool]]


def layers_of(
    task: Task, image: np.ndarray, truth: Any, answers: Sequence[tuple[str, Any]]
) -> list[Layer]:
    """The photo, the truth, each network's answer, and where the answers are wrong.

    Args:
        image: (H, W, C) uint8.
        truth: as the reader gives it, or None.
        answers: (name, one image's prediction).
    """
    photo = as_rgb(image)
    found = [Layer("image", photo, photo=True)]
    known = [*([("truth", truth)] if truth is not None else []), *answers]
    if isinstance(task, Detection):
        return found + [
            Layer(name, svg=boxes_svg(task, photo.shape[:2], answer)) for name, answer in known
        ]
    for name, answer in known:
        drawn = to_numpy(answer) if isinstance(task, Segmentation) else answer
        found.append(Layer(name, task.picture(photo, drawn), photo=isinstance(task, Depth)))
    if truth is not None:
        for name, answer in answers:
            wrong = errors(task, photo, truth, answer)
            if wrong is not None:
                found.append(Layer(f"errors of {name}", wrong))
    return found


def errors(task: Task, photo: np.ndarray, truth: Any, answer: Any) -> np.ndarray | None:
    """(H, W, 3) where an answer is wrong: segmentation in red on grey, depth by its relative error; unknown black."""
    if isinstance(task, Segmentation):
        true, given = np.asarray(truth), to_numpy(answer)
        known = true != task.ignore_index
        grey = (photo.mean(2, keepdims=True) * 0.5 + 100).astype(np.uint8).repeat(3, 2)
        grey[~known] = 0
        grey[known & (true != given)] = WRONG
        return grey
    if isinstance(task, Depth):
        true = np.asarray(truth.depth, np.float32)
        given = to_numpy(answer).reshape(true.shape).clip(*task.range)
        low, high = task.range
        known = np.isfinite(true) & (true >= low) & (true <= high)
        share = np.abs(given - true) / np.where(known, true, 1)
        level = (255 * np.clip(share / WORST_ERROR, 0, 1)).astype(np.uint8)
        colours = cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1]
        return np.ascontiguousarray(colours) * known[..., None].astype(np.uint8)
    return None


def boxes_svg(task: Detection, size: tuple[int, int], answer: Any) -> Markup:
    """Boxes with names over an image (height, width); those of a network from the task's `shown_above` on."""
    height, width = size
    letter = max(height, width) / 40
    parts = [f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">']
    boxes, labels = to_numpy(answer.boxes), to_numpy(answer.labels)
    scores = to_numpy(answer.scores) if hasattr(answer, "scores") else None
    ignored = to_numpy(answer.ignored) if hasattr(answer, "ignored") else None
    for i in reversed(range(len(boxes))):  # the best last, on top
        if scores is not None and scores[i] < task.shown_above:
            continue
        grey = ignored is not None and bool(ignored[i])
        rgb = (160, 160, 160) if grey else task.palette[int(labels[i])]
        colour = "#" + "".join(f"{int(v):02x}" for v in rgb)
        x0, y0, x1, y1 = (round(float(v), 1) for v in boxes[i])
        text = task.classes[int(labels[i])] + ("" if scores is None else f" {scores[i]:.2f}")
        ink = "#000" if sum(int(v) for v in rgb) > 380 else "#fff"
        top = max(0.0, y0 - 1.25 * letter)
        wide = 0.54 * letter * len(text) + 0.4 * letter
        left = max(0.0, min(x0, width - wide))
        parts.append(
            f'<rect x="{x0}" y="{y0}" width="{max(0.1, x1 - x0):.1f}" height="{max(0.1, y1 - y0):.1f}" fill="none" '
            f'stroke="{colour}" stroke-width="{letter / 5:.2f}"/>'
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{1.25 * letter:.1f}" fill="{colour}"/>'
            f'<text x="{left + 0.2 * letter:.1f}" y="{top + letter:.1f}" font-size="{letter:.1f}" '
            f'textLength="{wide - 0.4 * letter:.1f}" lengthAdjust="spacingAndGlyphs" fill="{ink}">{escape(text)}</text>'
        )
    return Markup("".join(parts) + "</svg>")


def fit(images: Sequence[Sequence[Layer]], room: int = ROOM) -> list[list[str | None]]:
    """Data URIs of all layers, at the largest width at which they fit into `room` bytes together."""
    found: list[list[str | None]] = []
    for width in WIDTHS:
        files = [[encode(layer, width) for layer in layers] for layers in images]
        found = [[data_uri(data) for data in row] for row in files]
        if sum(len(data) for row in files for data in row if data is not None) <= room:
            break
    return found


def encode(layer: Layer, width: int) -> bytes | None:
    """A WebP no wider than `width`; class maps keep their exact colours."""
    if layer.pixels is None:
        return None
    picture = Image.fromarray(np.ascontiguousarray(layer.pixels))
    if picture.width > width:
        size = (width, max(1, round(width * picture.height / picture.width)))
        how = Image.Resampling.LANCZOS if layer.photo else Image.Resampling.NEAREST
        picture = picture.resize(size, how)
    file = io.BytesIO()
    if layer.photo:
        picture.save(file, format="WEBP", quality=78, method=4)
    else:
        picture.save(file, format="WEBP", lossless=True, quality=60, method=4)
    return file.getvalue()


def data_uri(data: bytes | None) -> str | None:
    """Of a WebP."""
    return None if data is None else "data:image/webp;base64," + base64.b64encode(data).decode()
