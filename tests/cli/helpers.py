"""Tiny trees and real processes for the tests of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIZE = (32, 48)

# Several processes of one thread each, as the tests run beside one another.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def densekd(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`densekd ARGUMENTS` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "densekd", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=timeout,
        check=False,
    )


def torchrun(
    *arguments: object, timeout: float = 240, command: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`densekd ARGUMENTS`, or a Python text in densekd's place, as two processes that work together."""
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        *(["-m", "densekd"] if command is None else ["--no-python", sys.executable, "-c", command]),
    ]  # fmt: skip
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=timeout,
        check=False,
    )


def one_message(result: subprocess.CompletedProcess[str]) -> str:
    """What a mistake of the user's ends with: status 2, one message on stderr, nothing of Python's."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("densekd: error:") == 1, result.stderr
    assert result.stdout == ""
    return result.stderr


def write_camvid(root: Path, train: int = 6, val: int = 2) -> Path:
    """Noise in CamVid's layout."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        lines = []
        for i in range(count):
            image = draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            label = draw.integers(0, 12, SIZE, dtype=np.uint8)
            Image.fromarray(image).save(root / split / f"{i}.png")
            Image.fromarray(label).save(root / f"{split}annot" / f"{i}.png")
            lines.append(f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png")
        (root / f"{split}.txt").write_text("\n".join(lines))
    return root


def write_recipe(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
