"""Made-up data trees: tiny files in the layouts that the readers read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = (12, 16)  # height, width


def make_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Write an RGB image of noise and return its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def make_labels(path: Path, values: np.ndarray | list[int], palette: bool = False) -> np.ndarray:
    """Write a label PNG: an array as it is, or a list of values repeated over `SIZE`."""
    labels = np.resize(np.asarray(values), SIZE) if isinstance(values, list) else values
    labels = labels.astype(np.uint16 if labels.max() > 255 else np.uint8)
    image = Image.fromarray(labels)
    if palette:
        image = image.convert("P") if image.mode != "L" else image
        image.putpalette([(7 * i) % 256 for i in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return labels


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.fixture
def camvid(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a CamVid tree of n training and 2 validation images."""

    def build(n: int = 5, size: tuple[int, int] = SIZE) -> Path:
        for split, count in (("train", n), ("val", 2)):
            lines = []
            for i in range(count):
                make_image(tmp_path / split / f"{i}.png", seed=i, size=size)
                labels = np.resize(np.arange(12), size)
                make_labels(tmp_path / f"{split}annot" / f"{i}.png", np.roll(labels, i))
                lines.append(f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png")
            (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n")
        return tmp_path

    return build
