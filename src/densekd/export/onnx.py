"""ONNX: bytes of a file with its description, and the function that runs them in ONNX Runtime."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from densekd.errors import UserError
from densekd.export._quiet import quiet
from densekd.export.graph import OF_BOXES, Graph
from densekd.models.foreign._runtimes import onnx_session

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# (N, C, H, W) float32 -> the output, or a tuple of several
Run = Callable[[np.ndarray], np.ndarray | tuple[np.ndarray, ...]]


def check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'densekd[export]'")


def entries(about: Mapping[str, Any]) -> dict[str, str]:
    """A description as metadata, whose entries are texts: JSON, or plain text as it is."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()}


def onnx_bytes(graph: Graph, about: Mapping[str, Any]) -> bytes:
    """The file's content.

    Args:
        about: metadata, a JSON text an entry; plain text stays as it is.
    """
    proto = onnx_proto(graph.program, list(graph.module.outputs), _own_operations(graph.module.end))
    for key, text in entries(about).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, text
    _name_sizes(proto, graph)
    return proto.SerializeToString()


def onnx_proto(
    program: ExportedProgram, outputs: list[str], own: dict[Any, Callable[..., Any]] | None = None
) -> Any:
    """A traced program in ONNX's own form.

    Args:
        outputs: their names, in the program's order.
        own: how operations that torch does not know stand in ONNX.
    """
    check_packages()
    with quiet():
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=outputs,
            verbose=False,
            custom_translation_table=own,
        )
    assert written is not None
    proto = written.model_proto
    # What torch notes of each operation, with paths of this machine, is most of a small network's file.
    for node in [*proto.graph.node, *(n for f in proto.functions for n in f.node)]:
        node.ClearField("metadata_props")
    return proto


def _integers(op: Any, *values: int) -> Any:
    return op.Constant(value_ints=values)


def _own_operations(end: str) -> dict[Any, Callable[..., Any]]:
    """How densekd's operations stand in ONNX: rounding as QDQ pairs, which runtimes compute in integers, and NMS."""
    ir: Any = importlib.import_module("onnxscript.ir")
    op: Any = importlib.import_module("onnxscript.onnx_opset").opset18

    def rounded(x: Any, scale: float, zero: int) -> Any:
        size = op.Constant(value=ir.tensor(scale, ir.DataType.FLOAT))
        place = op.Constant(value=ir.tensor(zero, ir.DataType.UINT8))
        return op.DequantizeLinear(op.QuantizeLinear(x, size, place), size, place)

    def stored(values: Any, scale: Any, axis: int) -> Any:
        return op.DequantizeLinear(values, scale, axis=axis)

    def kept(
        boxes: Any, scores: Any, labels: Any, classes: int, low: float, overlap: float, count: int
    ) -> Any:
        number = op.Constant(value=ir.tensor([[[k] for k in range(classes)]], ir.DataType.INT64))
        own = op.Equal(op.Unsqueeze(labels, _integers(op, 1)), number)  # (N, K, C)
        nothing = op.Constant(value_float=-1.0)
        by_class = op.Where(own, op.Unsqueeze(scores, _integers(op, 1)), nothing)
        chosen = op.NonMaxSuppression(
            boxes,
            by_class,
            _integers(op, count),
            op.Constant(value_floats=[overlap]),
            op.Constant(value_floats=[low]),
        )  # rows of image, class, box
        places = op.Gather(chosen, _integers(op, 0, 2), axis=1)
        rows = op.Shape(chosen, end=1)
        ones = op.Expand(op.Constant(value_float=1.0), rows)
        none = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
        return op.Cast(op.ScatterND(none, places, ones), to=ir.DataType.BOOL)

    table: dict[Any, Callable[..., Any]] = {
        torch.ops.densekd.rounded.default: rounded,
        torch.ops.densekd.stored.default: stored,
    }
    if end == "detections":  # the operation is there where detection has been imported
        table[torch.ops.densekd.kept.default] = kept
    return table


def _name_sizes(proto: Any, graph: Graph) -> None:
    """Free sizes of input and output get names that people can read."""
    names = ("batch", None, "height", "width")
    (images,) = proto.graph.input
    for place, name in enumerate(names):
        if name is not None:
            images.type.tensor_type.shape.dim[place].dim_param = name
    if graph.module.end in OF_BOXES:
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
