"""ONNX Runtime and OpenVINO behind one call: a file's names, the shape and type of its input, and how it is run."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekd.errors import UserError, first_line
from densekd.models.foreign._package import package

# The runtimes' names of types -> NumPy's.
ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
}
CPU = "CPUExecutionProvider"
SECTION = "densekd"  # of an OpenVINO file's runtime info
OPENVINO_TYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "u8": "uint8"}


@dataclass(frozen=True)
class Runtime:
    """A loaded file.

    Attributes:
        outputs: the names of its outputs, in the file's order.
        shape: of its input; None where a size is free.
        dtype: NumPy's name of the input's type.
        run: images of that shape and type -> one array an output.
        metadata: what the file says of itself.
    """

    outputs: list[str]
    shape: list[int | None]
    dtype: str
    run: Callable[[np.ndarray], list[np.ndarray]]
    metadata: dict[str, str] = field(default_factory=dict)


def onnxruntime(file: Path) -> Runtime:
    """An ONNX file in ONNX Runtime, on a GPU where the installed package has one."""
    library: Any = package("onnxruntime", "onnxruntime", "export")
    there = library.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", CPU) if p in there]
    try:
        session = onnx_session(str(file), torch.get_num_threads(), providers)
    except Exception as error:  # the runtime's errors have no common base class
        raise unreadable(file, error) from error
    given = one_input(file, session.get_inputs())
    names = [output.name for output in session.get_outputs()]
    return Runtime(
        names,
        [size if isinstance(size, int) else None for size in given.shape],
        known_type(file, given.type, ONNX_TYPES),
        lambda images: session.run(names, {given.name: images}),
        dict(session.get_modelmeta().custom_metadata_map),
    )


def onnx_session(
    content: str | bytes,
    threads: int | None = None,
    providers: Sequence[str] = (CPU,),
    *,
    spin: bool = True,
) -> Any:
    """ONNX Runtime's session of a file, by its path or its bytes. It raises what the runtime raises.

    Args:
        threads: of one operator; None takes all cores.
        spin: whether idle threads wait for work in a loop, which takes the cores from whatever else computes.
    """
    library: Any = package("onnxruntime", "onnxruntime", "export")
    options = library.SessionOptions()
    options.log_severity_level = 4  # what fails is raised too
    if threads is not None:
        options.intra_op_num_threads = threads
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return library.InferenceSession(content, options, providers=list(providers))


def openvino(file: Path) -> Runtime:
    """An ONNX file, or OpenVINO's own .xml with its .bin beside it, on the CPU."""
    package("openvino", "openvino", "openvino")
    try:
        model, compiled = openvino_program(file, torch.get_num_threads())
    except Exception as error:  # the runtime's errors have no common base class
        raise unreadable(file, error) from error
    given = one_input(file, compiled.inputs)
    shape = given.get_partial_shape()
    count = len(compiled.outputs)
    names = [sorted(output.get_names()) for output in compiled.outputs]

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = compiled([images])
        return [found[i] for i in range(count)]

    return Runtime(
        [known[0] if known else f"output_{i}" for i, known in enumerate(names)],
        [None if size.is_dynamic else size.get_length() for size in shape],
        known_type(file, given.get_element_type().get_type_name(), OPENVINO_TYPES),
        run,
        openvino_about(model),
    )


def openvino_program(file: Path | bytes, threads: int | None = None) -> tuple[Any, Any]:
    """A file's model, and the same compiled for the CPU in float32, whatever the CPU would choose.

    It raises what the runtime raises.

    Args:
        file: its path, or the bytes of an ONNX file.
        threads: None takes all cores.
    """
    library: Any = package("openvino", "openvino", "openvino")
    core = library.Core()
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    model = core.read_model(io.BytesIO(file) if isinstance(file, bytes) else str(file))
    return model, core.compile_model(model, "CPU", options)


def openvino_about(model: Any) -> dict[str, str]:
    """What `densekd export` wrote into a model of OpenVINO; empty for files of others."""
    for section in (SECTION, "framework"):  # the second: of an ONNX file that OpenVINO reads
        found = model.get_rt_info([section]).astype(dict) if model.has_rt_info([section]) else {}
        if (section == SECTION and found) or SECTION in found:
            return {key: value.astype(str) for key, value in found.items()}
    return {}


def program_about(file: Path) -> dict[str, Any]:
    """What `densekd export` wrote into a file, read without preparing it to run; empty for files of others.

    A file that cannot be read says nothing here: what is wrong with it is said where it is loaded.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".onnx":
            library: Any = package("onnxruntime", "onnxruntime", "export")
            options = library.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = library.InferenceSession(str(file), options, providers=[CPU])
            return dict(session.get_modelmeta().custom_metadata_map)
        if suffix == ".xml":
            return openvino_about(
                package("openvino", "openvino", "openvino").Core().read_model(str(file))
            )
        with zipfile.ZipFile(file) as archive:
            names = [n for n in archive.namelist() if n.endswith("/densekd.json")]
            about = json.loads(archive.read(names[0])) if names else {}
            return about if isinstance(about, dict) else {}
    except Exception:  # the runtimes' errors have no common base class
        return {}


def unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"path {file}: cannot be loaded: {first_line(error)}")


def one_input(file: Path, inputs: list[Any]) -> Any:
    if len(inputs) != 1:
        names = ", ".join(getattr(entry, "name", "") or str(entry) for entry in inputs)
        raise UserError(
            f"path {file}: has {len(inputs)} inputs ({names}); expected one, the images (N, C, H, W)"
        )
    return inputs[0]


def known_type(file: Path, name: str, types: dict[str, str]) -> str:
    if name not in types:
        raise UserError(
            f"path {file}: its input is of {name}; expected images of one of {', '.join(types)}"
        )
    return types[name]


def parts_of(file: Path) -> list[Path]:
    """A program's file and, where they lie apart, its weights: OpenVINO's .bin, or the ``.data`` of an ONNX file."""
    beside = [file.with_suffix(".bin")] if file.suffix.lower() == ".xml" else []
    if file.suffix.lower() == ".onnx":
        beside = [file.with_name(file.name + ".data")]
    return [file, *(path for path in beside if path.is_file())]
