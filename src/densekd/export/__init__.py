"""Networks as files that run without densekd: ONNX and `torch.export` programs."""

from densekd.export.graph import Deployed, Graph, trace
from densekd.export.onnx import check_packages, onnx_bytes, onnx_runner
from densekd.export.verify import Gap, compare

__all__ = [
    "Deployed",
    "Gap",
    "Graph",
    "check_packages",
    "compare",
    "onnx_bytes",
    "onnx_runner",
    "trace",
]
