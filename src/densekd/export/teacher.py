"""A frozen teacher as a program of ONNX Runtime or OpenVINO: its prediction and tapped features, on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from densekd.errors import UserError, first_line
from densekd.export.onnx import Run, check_packages, onnx_proto, session_runner
from densekd.export.openvino import check_openvino, compiled_runner
from densekd.export.quantise import quantise
from densekd.models.foreign._runtimes import onnx_session, openvino_program
from densekd.models.taps import Taps, evaluating
from densekd.types import DenseOutput, DetectorOutput, SetPrediction

# What of an output a program computes. Anchors are of the image's size, and nothing reads a teacher's auxiliary map.
COMPUTED = {
    DenseOutput: ("prediction", "features"),
    DetectorOutput: ("logits", "boxes", "centerness"),
    SetPrediction: ("logits", "boxes"),
}


class TeacherProgram:
    """A tapped network's forward pass in another runtime, with the process's number of threads.

    It takes batches of any size, of images of one height and width. Equal inputs give equal bits, with equal threads.

    Args:
        network: folded and laid out as it works; it is left as it is.
        images: (N, C, H, W) RGB in [0, 1], of the height and width that the program takes; float32.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        prediction: whether the prediction is computed too; False: the features alone.
        calibration: (n, C, H, W) images for the ranges of a program in int8; None: it computes in float32.

    Raises:
        UserError: a package is missing, the network cannot be exported, or its output is not made of tensors.
    """

    def __init__(
        self,
        network: Taps,
        images: Tensor,
        *,
        runtime: str,
        prediction: bool = True,
        calibration: Iterable[Tensor] | None = None,
    ) -> None:
        check_runtime(runtime)
        self.prediction = prediction
        self.runtime = runtime
        self.size = tuple(images.shape[1:])
        content, self.form = exported(network, images, prediction)
        if calibration is not None:
            ones = (image.numpy() for batch in calibration for image in batch.float().split(1))
            content, _ = quantise(content, map(np.ascontiguousarray, ones))
        try:
            self.run = RUNTIMES[runtime](content, torch.get_num_threads())
        except Exception as error:  # the runtimes' errors have no common base class
            raise UserError(f"{runtime} cannot load the teacher: {first_line(error)}") from error

    def __call__(self, images: Tensor) -> DenseOutput:
        """(N, C, H, W) RGB in [0, 1] -> prediction (None without it) and tapped features, float32, on the CPU."""
        if tuple(images.shape[1:]) != self.size:
            raise UserError(
                f"the teacher was exported for images of {self.size} and these are {tuple(images.shape[1:])}; set "
                "teacher.runtime to eager for images of several sizes"
            )
        try:
            found = self.run(images.detach().float().contiguous().numpy())
        except Exception as error:  # the runtimes' errors have no common base class
            raise UserError(f"{self.runtime} fails on the teacher: {first_line(error)}") from error
        maps = found if isinstance(found, tuple) else (found,)
        return filled(self.form, iter(torch.from_numpy(array) for array in maps))


class Flat(nn.Module):
    """A tapped network whose maps come in a row, as a graph gives them."""

    def __init__(self, network: Taps, prediction: bool) -> None:
        super().__init__()
        self.network = network
        self.prediction = prediction

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.network.forward(images, prediction=self.prediction)
        return tuple(value for _, value in named_maps(output))


def exported(network: Taps, images: Tensor, prediction: bool) -> tuple[bytes, DenseOutput]:
    """The network as an ONNX file of any batch at this size, and its output with empty tensors for what is computed."""
    flat = Flat(network, prediction).eval()
    two = images[:1].repeat(2, 1, 1, 1)  # a batch of one would become a constant
    with evaluating(flat), torch.no_grad():
        output = network.forward(two, prediction=prediction)
        names = [name for name, _ in named_maps(output)]
        if not names:
            raise UserError("the terms compare nothing that the teacher computes")
        try:
            program = torch.export.export(flat, (two,), dynamic_shapes=({0: Dim("batch", min=1)},))
            proto = onnx_proto(program, [f"map_{i}" for i in range(len(names))])
        except UserError:
            raise
        except Exception as error:  # torch.export's errors have no common base class
            raise UserError(
                f"{type(network.model).__name__} cannot be exported: {first_line(error).rstrip('.')}. Take eager, "
                "which needs no export"
            ) from error
    form = filled(replace(output, aux=None), repeat(torch.empty(0)))
    return proto.SerializeToString(), form


def check_runtime(runtime: str) -> None:
    """UserError where a package of this runtime is missing; it names the extra."""
    check_packages()  # OpenVINO reads what these write
    if runtime == "openvino":
        check_openvino()


def in_onnxruntime(content: bytes, threads: int) -> Run:
    return session_runner(onnx_session(content, threads, spin=False))


def in_openvino(content: bytes, threads: int) -> Run:
    return compiled_runner(openvino_program(content, threads)[1])


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def named_maps(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Every computed tensor of an output with its name, as ``("features.layer4", tensor)``, always in one order."""
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [(name, value)]
    return [
        pair
        for key, inner in _inner(value)
        for pair in named_maps(inner, f"{name}.{key}".strip("."))
    ]


def filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same output with other tensors in the places of those that are computed."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return next(tensors)
    inner = {key: filled(one, tensors) for key, one in _inner(value)}
    if isinstance(value, dict):
        return inner
    return list(inner.values()) if isinstance(value, list) else replace(value, **inner)


def _inner(value: Any) -> list[tuple[Any, Any]]:
    if type(value) in COMPUTED:
        return [(name, getattr(value, name)) for name in COMPUTED[type(value)]]
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list):
        return list(enumerate(value))
    raise UserError(
        f"the teacher's output holds a {type(value).__name__}, which another runtime cannot give; expected tensors, or "
        "the maps of a detector"
    )


def map_errors(expected: DenseOutput, found: DenseOutput) -> dict[str, float]:
    """Name of a map -> the largest difference as a share of the largest finite value.

    It is infinite where the shapes differ, or where a value is finite in one of them alone.
    """
    others = dict(named_maps(found))
    errors = {}
    for name, value in named_maps(expected):
        other = others.get(name)
        if other is None or other.shape != value.shape:
            errors[name] = float("inf")
            continue
        difference = torch.where(value == other, 0.0, (value - other).abs())
        # A class that the teacher does not know has the logit -inf, of which any difference is no share at all.
        largest = value.abs().where(value.isfinite(), 0.0).max()
        error = float(difference.max() / largest.clamp(min=1e-12))
        errors[name] = error if error == error else float("inf")
    return errors
