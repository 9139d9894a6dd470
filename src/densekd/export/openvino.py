"""OpenVINO: an ONNX file as OpenVINO's own pair FILE.xml and FILE.bin, and the function that runs it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densekd.errors import UserError
from densekd.export.onnx import Run, entries
from densekd.models.foreign._runtimes import SECTION


def check_openvino() -> None:
    if importlib.util.find_spec("openvino") is None:
        raise UserError("OpenVINO needs its package: pip install 'densekd[openvino]'")


def save_openvino(onnx: Path, xml: Path, about: Mapping[str, Any]) -> None:
    """Write `xml` and the weights beside it.

    Args:
        about: metadata, a JSON text an entry; plain text stays as it is.
    """
    check_openvino()
    ov: Any = importlib.import_module("openvino")
    model = ov.Core().read_model(str(onnx))
    for key, text in entries(about).items():
        model.set_rt_info(text, [SECTION, key])
    ov.save_model(model, str(xml), compress_to_fp16=False)


def compiled_runner(compiled: Any) -> Run:
    def run(images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        found = compiled(np.ascontiguousarray(images))
        outputs = [
            found[port] for port in compiled.outputs
        ]  # copies: OpenVINO shares no outputs by itself
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run
