"""ONNX: bytes of a file with its description, and the function that runs them in ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from densekd.errors import UserError
from densekd.export.graph import Graph
from densekd.models.foreign._runtimes import onnx_session

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# (N, C, H, W) float32 -> the output, or a tuple of several
Run = Callable[[np.ndarray], np.ndarray | tuple[np.ndarray, ...]]


def check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'densekd[export]'")


def onnx_bytes(graph: Graph, about: Mapping[str, Any]) -> bytes:
    """The file's content.

    Args:
        about: metadata, a JSON text an entry; plain text stays as it is.
    """
    check_packages()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.program,
                dynamo=True,
                input_names=["images"],
                output_names=list(graph.module.outputs),
                verbose=False,
                custom_translation_table=_rounding(),
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    proto = program.model_proto
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    _name_sizes(proto, graph)
    return proto.SerializeToString()


def _rounding() -> dict[Any, Callable[..., Any]]:
    """How the operations of an int8 network stand in ONNX: as QDQ pairs, which runtimes compute in integers."""
    ir: Any = importlib.import_module("onnxscript.ir")
    op: Any = importlib.import_module("onnxscript.onnx_opset").opset18

    def rounded(x: Any, scale: float, zero: int) -> Any:
        size = op.Constant(value=ir.tensor(scale, ir.DataType.FLOAT))
        place = op.Constant(value=ir.tensor(zero, ir.DataType.UINT8))
        return op.DequantizeLinear(op.QuantizeLinear(x, size, place), size, place)

    def stored(values: Any, scale: Any, axis: int) -> Any:
        return op.DequantizeLinear(values, scale, axis=axis)

    return {
        torch.ops.densekd.rounded.default: rounded,
        torch.ops.densekd.stored.default: stored,
    }


def _name_sizes(proto: Any, graph: Graph) -> None:
    """Free sizes of input and output get names that people can read."""
    names = ("batch", None, "height", "width")
    (images,) = proto.graph.input
    for place, name in enumerate(names):
        if name is not None:
            images.type.tensor_type.shape.dim[place].dim_param = name
    if graph.module.end == "boxes":
        return
    (answer,) = proto.graph.output
    answer.type.tensor_type.shape.dim[0].dim_param = "batch"
    if graph.module.end != "none":
        for place, name in ((-2, "height"), (-1, "width")):
            answer.type.tensor_type.shape.dim[place].dim_param = name


def onnx_runner(content: bytes | str, threads: int | None = None) -> Run:
    """A function that runs a file, or the content of one, on the CPU.

    Args:
        content: the bytes, or the path.
        threads: of one operator; None takes all cores.
    """
    check_packages()
    return session_runner(onnx_session(content, threads))


def session_runner(session: Any) -> Run:
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        found = session.run(None, {name: images})
        return found[0] if len(found) == 1 else tuple(found)

    return run
