"""Networks as files that run without densekd, in ONNX, OpenVINO, LiteRT, Core ML and `torch.export`; and read again."""

from densekd.export.coreml import (
    check_coreml,
    check_package,
    coreml_runner,
    runs_here,
    save_coreml,
)
from densekd.export.graph import Deployed, Graph, trace
from densekd.export.onnx import check_packages, onnx_bytes, onnx_runner
from densekd.export.openvino import check_openvino, save_openvino
from densekd.export.program import EXPORTED, ExportedFile, Program, open_exported
from densekd.export.quantise import quantise
from densekd.export.tflite import check_tflite, open_tflite, save_tflite
from densekd.export.verify import Gap, compare

__all__ = [
    "EXPORTED",
    "Deployed",
    "ExportedFile",
    "Gap",
    "Graph",
    "Program",
    "check_coreml",
    "check_openvino",
    "check_package",
    "check_packages",
    "check_tflite",
    "compare",
    "coreml_runner",
    "onnx_bytes",
    "onnx_runner",
    "open_exported",
    "open_tflite",
    "quantise",
    "runs_here",
    "save_coreml",
    "save_openvino",
    "save_tflite",
    "trace",
]
