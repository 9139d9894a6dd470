"""`export`: a model as one file for another runtime, checked there before it is written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import densekd
from densekd.errors import UserError
from densekd.export import Gap, Graph, check_packages, compare, onnx_bytes, onnx_runner, trace
from densekd.export.graph import end_of, example_size
from densekd.ops.files import open_atomic
from densekd.ops.names import bytes_text
from densekd.workflows.load import LoadedModel

FORMATS = (".onnx", ".pt2")


def check_target(out: Path) -> None:
    """What can be said before the model is loaded."""
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: expected a name that ends with {' or '.join(FORMATS)}")
    if out.exists():
        raise UserError(f"--out {out} exists; give another name")
    if out.suffix == ".onnx":
        check_packages()


def export(
    model: LoadedModel,
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    end: str | None = None,
) -> dict[str, Any]:
    """Write the file; returns what it is and how far it is from PyTorch.

    Args:
        model: on the CPU.
        size: (height, width) of the images that it is traced and checked with.
        end: ``"argmax"``, ``"metres"``, ``"none"``, or None for the task's own.

    Raises:
        UserError: the network cannot be exported, or the file's answers differ; nothing is written.
    """
    check_target(out)
    end = end_of(model.task, end)
    size = example_size(model.input_spec, size)
    graph = trace(model.model, model.task, model.input_spec, end, size)
    about = description(model, graph)
    content = onnx_bytes(graph, about) if out.suffix == ".onnx" else _pt2_bytes(graph, about)
    run = onnx_runner(content) if out.suffix == ".onnx" else _pt2_runner(content)
    gaps = compare(graph, run, out.name)
    with open_atomic(out, "wb") as file:
        file.write(content)
    return {
        "file": str(out),
        "bytes": len(content),
        "output": about["output"],
        "input": about["input"],
        "checks": [_check(gap) for gap in gaps],
    }


def description(model: LoadedModel, graph: Graph) -> dict[str, Any]:
    """The metadata of the file."""
    sizes = "any" if graph.divisor == 1 else f"multiples of {graph.divisor}"
    channels = model.input_spec.channels
    colours = "RGB" if channels == 3 else f"{channels} channels,"
    named = model.about.get("model", {}).get("name", type(model.model).__name__)
    outputs = {
        "argmax": "classes (N, H, W): the class of each pixel",
        "metres": "depth (N, 1, H, W) in metres",
        "none": "prediction: the network's own maps, (N, K, h, w)",
    }
    return {
        "densekd": densekd.__version__,
        "task": model.task.name,
        "network": named,
        "classes": model.classes,
        "palette": model.palette or [],
        "input": f"images (N, {channels}, H, W), {colours} float32 in [0, 1]; normalised in the graph; sizes: {sizes}",
        "output": outputs[graph.module.end],
        "note": model.about.get("note", ""),
    }


def _check(gap: Gap) -> dict[str, Any]:
    return {"shape": list(gap.shape), "error": gap.error, "differing": gap.differing}


def _pt2_bytes(graph: Graph, about: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.export.save(graph.program, file, extra_files={"densekd.json": json.dumps(about)})
    return file.getvalue()


def _pt2_runner(content: bytes) -> Any:
    module = torch.export.load(io.BytesIO(content)).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run


def as_text(result: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = [
        f"{result['file']}: {bytes_text(result['bytes'])}",
        f"takes {result['input']}",
        f"gives {result['output']}",
    ]
    for check in result["checks"]:
        shape = "×".join(map(str, check["shape"]))
        other = f", {check['differing']:.2%} of the pixels differ" if check["differing"] else ""
        lines.append(f"equals PyTorch at {shape} within {check['error']:.1g}{other}")
    return "\n".join(lines)
