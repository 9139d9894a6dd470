"""Networks as files that run without densekd: ONNX, OpenVINO, LiteRT and `torch.export`; and such files read again."""

from densekd.export.graph import Deployed, Graph, trace
from densekd.export.onnx import check_packages, onnx_bytes, onnx_runner
from densekd.export.openvino import check_openvino, save_openvino
from densekd.export.program import EXPORTED, ExportedFile, Program, open_exported
from densekd.export.quantise import quantise
from densekd.export.tflite import check_tflite, save_tflite, tflite_runner
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
    "check_tflite",
    "compare",
    "onnx_bytes",
    "onnx_runner",
    "open_exported",
    "quantise",
    "save_openvino",
    "save_tflite",
    "tflite_runner",
    "trace",
]
