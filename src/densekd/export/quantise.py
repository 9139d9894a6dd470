"""Static int8 quantisation of an ONNX file: QDQ pairs, int8 weights a channel, activations calibrated on images."""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from densekd.errors import UserError, first_line
from densekd.export.onnx import check_packages

# What runs in int8. What normalises, resizes and decides stays in float.
OPERATORS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


class _Images:
    """The calibration images, one after the other, as ONNX Runtime asks for them."""

    def __init__(self, images: Iterable[np.ndarray], name: str) -> None:
        self.images = iter(images)
        self.name = name
        self.count = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        if image is None:
            return None
        self.count += 1
        return {self.name: image}


def quantise(content: bytes, images: Iterable[np.ndarray]) -> tuple[bytes, int]:
    """An ONNX file in int8, and the number of images it was calibrated on.

    Args:
        content: of a float file; its metadata is kept.
        images: (1, C, H, W) float32 each, as the file takes them.

    Raises:
        UserError: there is no image, or ONNX Runtime cannot quantise the file.
    """
    check_packages()
    onnx: Any = importlib.import_module("onnx")
    tools: Any = importlib.import_module("onnxruntime.quantization")
    prepare: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    proto = onnx.load_from_string(content)
    reader = _Images(images, proto.graph.input[0].name)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, ready, done = (
                str(Path(folder, name)) for name in ("a.onnx", "b.onnx", "c.onnx")
            )
            onnx.save(proto, given)
            prepare.quant_pre_process(given, ready, skip_symbolic_shape=True)
            tools.quantize_static(
                ready,
                done,
                reader,
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                # Weights of 7 bits: processors with AVX2 and no VNNI add pairs of products in 16 bits, which whole
                # int8 weights overflow without a word (16 % off on a single convolution, 1 % with this).
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                op_types_to_quantize=OPERATORS,
            )
            quantised = onnx.load(done)
    except Exception as error:  # ONNX Runtime's errors have no common base class
        if reader.count == 0:
            raise UserError("there is no image to calibrate on") from error
        raise UserError(f"ONNX Runtime cannot quantise it: {first_line(error)}") from error
    finally:
        logger.setLevel(level)
    kept = {entry.key for entry in quantised.metadata_props}
    for entry in proto.metadata_props:
        if entry.key not in kept:
            quantised.metadata_props.add(key=entry.key, value=entry.value)
    return quantised.SerializeToString(), reader.count
