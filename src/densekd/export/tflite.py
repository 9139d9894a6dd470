"""TensorFlow Lite (LiteRT): a file of one shape, with its description as a ZIP entry behind it, and its runner."""

from __future__ import annotations

import importlib
import importlib.util
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekd.errors import UserError, first_line
from densekd.export._quiet import quiet
from densekd.export.graph import Graph
from densekd.export.onnx import Run

RUNTIME = "ai_edge_litert"
PACKAGES = ("litert_torch", RUNTIME)
ENTRY = "densekd/densekd.json"


def check_tflite(*, reading: bool = False) -> None:
    """Raise UserError where a package is missing; `reading` needs the runtime alone."""
    needed = (RUNTIME,) if reading else PACKAGES
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"TensorFlow Lite needs {', '.join(missing)}: pip install 'densekd[tflite]'"
        )


def save_tflite(graph: Graph, file: Path, about: Mapping[str, Any]) -> None:
    """Write a file that takes one image of the size that the graph was traced at.

    Args:
        about: metadata, JSON in the entry `ENTRY` of the ZIP archive that the file ends with, as TensorFlow Lite keeps
            associated files.

    Raises:
        UserError: the network cannot be converted.
    """
    check_tflite()
    try:
        with quiet(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            litert: Any = importlib.import_module("litert_torch")
            images = torch.rand(1, graph.channels, *graph.example)
            draft = Path(folder, "draft.tflite")
            litert.convert(graph.module, (images,)).export(str(draft))
            content = draft.read_bytes()
    except Exception as error:  # the converter's errors have no common base class
        raise UserError(
            f"the network cannot be converted by litert-torch: {first_line(error)}. Write an .onnx file instead"
        ) from error
    file.write_bytes(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(ENTRY, json.dumps(dict(about)))


def open_tflite(
    file: Path, threads: int | None = None
) -> tuple[dict[str, Any], Run, tuple[int, int]]:
    """What a file says of itself, a function that runs it on the CPU an image at a time, and its one (height, width).

    It raises what the runtime raises.

    Args:
        threads: None leaves the number to the runtime.
    """
    check_tflite(reading=True)
    with quiet():
        library: Any = importlib.import_module("ai_edge_litert.interpreter")
        interpreter = library.Interpreter(model_path=str(file), num_threads=threads)
        interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    (answer,) = interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        answers = []
        for image in images:
            interpreter.set_tensor(given["index"], np.ascontiguousarray(image[None]))
            interpreter.invoke()
            answers.append(interpreter.get_tensor(answer["index"]))
        return np.concatenate(answers)

    height, width = (int(side) for side in given["shape"][-2:])
    return tflite_about(file), run, (height, width)


def tflite_about(file: Path) -> dict[str, Any]:
    """The description behind a file; empty where another program wrote it."""
    if not zipfile.is_zipfile(file):
        return {}
    with zipfile.ZipFile(file) as archive:
        return json.loads(archive.read(ENTRY)) if ENTRY in archive.namelist() else {}
