"""Core ML: an .mlpackage of one shape with its description, read back to see that it is what was asked for."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekd.errors import UserError, first_line
from densekd.export._quiet import quiet
from densekd.export.graph import Graph
from densekd.export.onnx import Run, entries


def check_coreml() -> None:
    if importlib.util.find_spec("coremltools") is None:
        raise UserError("Core ML needs coremltools: pip install 'densekd[coreml]'")


def save_coreml(graph: Graph, folder: Path, about: Mapping[str, Any]) -> None:
    """Write an ML program in float32 that takes one image of the size that the graph was traced at.

    Args:
        about: metadata, an entry of the user's own each (`user_defined_metadata`): JSON, or plain text as it is.

    Raises:
        UserError: the network cannot be converted.
    """
    check_coreml()
    try:
        with quiet():
            tools: Any = importlib.import_module("coremltools")
            model = tools.convert(
                graph.program.run_decompositions({}),
                outputs=[tools.TensorType(name=name) for name in graph.module.outputs],
                convert_to="mlprogram",
                compute_precision=tools.precision.FLOAT32,
                minimum_deployment_target=tools.target.iOS16,
                skip_model_load=True,
            )
            model.user_defined_metadata.update(entries(about))
            model.save(str(folder))
    except Exception as error:  # the converter's errors have no common base class
        raise UserError(
            f"the network cannot be converted by coremltools: {first_line(error)}. Write an .onnx file instead"
        ) from error


def check_package(graph: Graph, folder: Path, about: Mapping[str, Any]) -> None:
    """Read a written package back: its input, outputs, shapes and metadata must be those of the graph.

    This is all that can be seen where Core ML does not run.

    Raises:
        UserError: something differs.
    """
    check_coreml()
    with quiet():
        tools: Any = importlib.import_module("coremltools")
        described = tools.utils.load_spec(str(folder)).description
    images = torch.rand(1, graph.channels, *graph.example)
    with torch.no_grad():
        answer = graph.module(images)
    answers = answer if isinstance(answer, tuple) else (answer,)
    wanted = {"images": tuple(images.shape)}
    wanted |= {n: tuple(a.shape) for n, a in zip(graph.module.outputs, answers, strict=True)}
    found = {
        entry.name: tuple(entry.type.multiArrayType.shape)
        for entry in [*described.input, *described.output]
    }
    if found != wanted:
        raise UserError(
            f"Core ML's package has {found} and the network {wanted}, so no file is written; write an .onnx file"
        )
    kept = dict(described.metadata.userDefined)
    lost = [key for key, text in entries(about).items() if kept.get(key) != text]
    if lost:
        raise UserError(
            f"Core ML's package has lost {', '.join(lost)} of its description, so no file is written"
        )


def runs_here() -> bool:
    """Whether Core ML is part of this system."""
    return sys.platform == "darwin"


def coreml_runner(folder: Path, outputs: tuple[str, ...]) -> Run:
    """A function that runs a package on the CPU of a Mac, an image at a time.

    Args:
        outputs: their names, in the order in which the answers are wanted.
    """
    tools: Any = importlib.import_module("coremltools")
    model = tools.models.MLModel(str(folder), compute_units=tools.ComputeUnit.CPU_ONLY)

    def run(images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        found = model.predict({"images": images})
        answers = tuple(np.asarray(found[name]) for name in outputs)
        return answers[0] if len(answers) == 1 else answers

    return run
