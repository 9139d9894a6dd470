"""TensorFlow Lite (LiteRT): a file of one shape, with its description as a ZIP entry behind it, and its runner."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekd.errors import UserError
from densekd.export.graph import Graph
from densekd.export.onnx import Run

PACKAGES = ("litert_torch", "ai_edge_litert")
ENTRY = "densekd/densekd.json"


def check_tflite() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
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
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            torch.no_grad(),
            tempfile.TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")
            litert: Any = importlib.import_module("litert_torch")
            images = torch.rand(1, graph.channels, *graph.example)
            draft = Path(folder, "draft.tflite")
            litert.convert(graph.module, (images,)).export(str(draft))
            content = draft.read_bytes()
    except Exception as error:  # the converter's errors have no common base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the network cannot be converted by litert-torch: {lines[0]}. Write an .onnx file instead"
        ) from error
    finally:
        logging.disable(level)
    file.write_bytes(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(ENTRY, json.dumps(dict(about)))


def tflite_runner(file: Path, threads: int | None = None) -> Run:
    """A function that runs a file on the CPU, an image at a time."""
    check_tflite()
    library: Any = importlib.import_module("ai_edge_litert.interpreter")
    interpreter = library.Interpreter(model_path=str(file), num_threads=threads)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    outputs = interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        answers = []
        for image in images:
            interpreter.set_tensor(given["index"], image[None])
            interpreter.invoke()
            answers.append(interpreter.get_tensor(outputs[0]["index"]))
        return np.concatenate(answers)

    return run
