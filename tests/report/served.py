"""A page of `densekd serve` with made-up networks, served in a thread."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densekd.report.serve import bind, make_app, make_server, page
from densekd.tasks import Depth, Detection, Segmentation
from densekd.types import InputSpec
from densekd.workflows.serve import Models

CLASSES = ["road", "a traffic sign with a rather long name", "sky"]
PALETTE = [(128, 64, 128), (220, 220, 0), (70, 130, 180)]
FILE = Path(__file__)  # stands for weights: its size is shown


class Network:
    """Answers without looking far: class 0 where the image is dark, `light` elsewhere."""

    def __init__(self, task: Any = None, light: int = 2, channels: int = 3) -> None:
        self.task = task or Segmentation(CLASSES, PALETTE)
        self.light = light
        self.classes, self.palette = list(self.task.classes), getattr(self.task, "palette", None)
        self.input_spec = InputSpec(mean=(0.5,) * channels, std=(0.25,) * channels)
        self.about: dict[str, Any] = {"model": {"name": "espnet_c"}, "note": "made up"}
        self.path, self.device = FILE, torch.device("cpu")
        self.model = torch.nn.Conv2d(3, 3, 1)
        self.shapes: list[tuple[int, ...]] = []

    def predict(self, image: np.ndarray) -> Any:
        self.shapes.append(image.shape)
        height, width = image.shape[:2]
        if isinstance(self.task, Detection):
            return {
                "boxes": np.array([[2, 2, width / 2, height / 2], [0, 0, 9, 9]], np.float32),
                "scores": np.array([0.9, 0.01], np.float32),
                "labels": np.array([1, 2]),
            }
        if isinstance(self.task, Depth):
            return np.linspace(2, 50, height * width, dtype=np.float32).reshape(height, width)
        return np.where(image.mean(2) > 100, self.light, 0).astype(np.int64)


def image_bytes(size: tuple[int, int] = (48, 96), kind: str = "PNG") -> bytes:
    """Dark on the left, light on the right; size is (height, width)."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, size[1] // 2 :] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


@contextmanager
def served(
    networks: Sequence[Any], titles: Sequence[str] = ("student", "teacher"), **more: Any
) -> Iterator[SimpleNamespace]:
    """``address``, ``port`` and ``models`` of a page that answers."""
    pytest.importorskip("starlette", reason="needs the extra serve")
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    models = Models(networks, titles)
    text = page(models.described(), place="Here", devices="cpu", most_side=2048, side=1024)
    app = make_app(text, more.pop("answer", models.answer), local=True, most_side=2048, **more)
    with bind("127.0.0.1", 0) as listening:
        server = make_server(app)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        try:
            yield SimpleNamespace(address=f"http://127.0.0.1:{port}/", port=port, models=models)
        finally:
            server.should_exit = True
            thread.join(10)
