"""Networks as files that run without densekd: ONNX, OpenVINO and `torch.export` programs; and such files read again."""

from densekd.export.graph import Deployed, Graph, trace
from densekd.export.onnx import check_packages, onnx_bytes, onnx_runner
from densekd.export.openvino import check_openvino, save_openvino
from densekd.export.program import EXPORTED, ExportedFile, Program, open_exported
from densekd.export.quantise import quantise
from densekd.export.verify import Gap, compare

__all__ = [
    "EXPORTED",
    "Deployed",
    "ExportedFile",
    "Gap",
    "Graph",
    "Program",
    "check_openvino",
    "check_packages",
    "compare",
    "onnx_bytes",
    "onnx_runner",
    "open_exported",
    "quantise",
    "save_openvino",
    "trace",
]
