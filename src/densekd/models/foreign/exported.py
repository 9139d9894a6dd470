"""A program of torch, ONNX or OpenVINO as a frozen teacher: ``{name: exported, options: {path: FILE}}``."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from densekd.errors import UserError, first_line
from densekd.models.foreign._checked_program import load_program
from densekd.models.foreign._runtimes import Runtime, onnxruntime, openvino, parts_of
from densekd.types import InputSpec

SUFFIXES = {".onnx": "onnxruntime", ".xml": "openvino"}
RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}


class Exported(nn.Module):
    """A loaded program; its mode is the one it was exported in, and nothing inside of it can be tapped.

    Args:
        input_spec: what it wants to see, where the file says so.
    """

    no_taps = "an exported program has no modules to be tapped; compare its predictions"

    def __init__(self, program: nn.Module, input_spec: InputSpec | None = None) -> None:
        super().__init__()
        self.program = program
        self.input_spec = input_spec

    def train(self, mode: bool = True) -> Exported:
        self.training = mode  # a program of torch.export refuses to change its mode
        return self

    def forward(self, images: Tensor) -> Any:
        return self.program(images)


class RuntimeNetwork(nn.Module):
    """A file that another runtime runs. Each output is a module of its own, so that a tap can name it.

    Args:
        runtime: the loaded file.
        file: where it came from, for messages; its digest is the network's only parameter.

    Attributes:
        prediction_path: the first output.
        input_spec: of a file that `densekd export` wrote, whose graph normalises by itself.
    """

    def __init__(self, runtime: Runtime, file: Path) -> None:
        super().__init__()
        self.runtime = runtime
        self.file = file
        self.names: list[str] = []
        for output in runtime.outputs:
            # A name may hold what a path separates its parts by, or be taken by a method.
            name = output.replace(".", "_").replace(":", "_")
            while hasattr(self, name):
                name += "_"
            self.add_module(name, nn.Identity())
            self.names.append(name)
        self.prediction_path = self.names[0]
        self.input_spec = deployed_input(runtime.metadata, runtime.shape[1] or 3, file)
        content = hashlib.blake2b()
        for part in parts_of(file):
            with part.open("rb") as opened:
                content.update(hashlib.file_digest(opened, "blake2b").digest())
        # A stored teacher is known by its state.
        digest = torch.from_numpy(np.frombuffer(content.digest(), np.uint8).copy())
        self.digest = nn.Parameter(digest, requires_grad=False)

    @torch.compiler.disable
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, C, H, W) -> every output by its name, floating ones as float32."""
        self._check(images)
        count = self.runtime.shape[0] or len(images)
        parts = [self._run(part) for part in images.detach().split(count)]
        whole = [torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)]
        return {
            name: self.get_submodule(name)(value.float().to(images.device))
            for name, value in zip(self.names, whole, strict=True)
        }

    def _run(self, images: Tensor) -> list[np.ndarray]:
        values = images.float().cpu()
        if self.runtime.dtype == "uint8":
            values = values.round().clamp(0, 255)
        array = np.ascontiguousarray(values.numpy().astype(self.runtime.dtype))
        try:
            return self.runtime.run(array)
        except Exception as error:  # the runtimes' errors have no common base class
            raise UserError(
                f"{self.file} does not run on images {tuple(images.shape)}: {first_line(error)}"
            ) from error

    def _check(self, images: Tensor) -> None:
        fixed = self.runtime.shape
        fits = len(fixed) == 4 and all(
            size in (None, given) for size, given in zip(fixed[1:], images.shape[1:], strict=True)
        )
        if not fits or len(images) % (fixed[0] or 1):
            wanted = ", ".join("any" if size is None else str(size) for size in fixed)
            raise UserError(
                f"{self.file} takes images of ({wanted}) and these are {tuple(images.shape)}; set data.crop and "
                "data.batch_size to fit, or export it again with free sizes"
            )


def exported(
    *,
    path: str,
    runtime: Literal["onnxruntime", "openvino"] | None = None,
    trusted: bool = False,
) -> nn.Module:
    """A frozen teacher from a file: TorchScript, a program of torch.export, ONNX, or OpenVINO's .xml.

    A program should be exported in eval mode, with a dynamic batch and, where images vary, dynamic sizes. A TorchScript
    file is a program in a language of its own, which can open files: use only those whose origin is known.

    Args:
        path: the file; .onnx and .xml go by their suffix.
        runtime: what runs an ONNX file; null: ONNX Runtime.
        trusted: read a program of torch.export that holds code of its own, pickled objects or libraries.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"path {path}: no such file")
    suffix = file.suffix.lower()
    if suffix in SUFFIXES:
        wanted = runtime or SUFFIXES[suffix]
        if suffix == ".xml" and wanted != "openvino":
            raise UserError(f"path {path}: is OpenVINO's; {wanted} runs .onnx alone")
        return RuntimeNetwork(RUNTIMES[wanted](file), file)
    if runtime is not None:
        raise UserError(
            f"runtime is {runtime} and path {path} ends with neither {' nor '.join(SUFFIXES)}; leave the runtime out"
        )
    return torch_program(file, path, trusted=trusted)


def deployed_input(about: Mapping[str, Any], channels: int, file: Path) -> InputSpec | None:
    """What a file that `densekd export` wrote wants to see: images in [0, 1]; None for files of others.

    Raises:
        UserError: its answers are decided already, and no student can learn from them.
    """
    if str(about.get("output", "")).startswith("classes"):
        raise UserError(
            f"path {file}: gives the class of each pixel alone, and a student learns from scores; write it again "
            "with `densekd export --with none`"
        )
    if str(about.get("output", "")).startswith("boxes"):
        raise UserError(
            f"path {file}: gives decoded boxes, and a student learns from a detector's maps; take the run or the "
            "weights file that it was made of as the teacher"
        )
    if "densekd" not in about:
        return None
    return InputSpec(mean=(0.0,) * channels, std=(1.0,) * channels)


def is_script(file: Path) -> bool:
    """Whether a file is a TorchScript program, which alone keeps its constants apart; nothing of it is run."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def torch_program(file: Path, path: str, *, trusted: bool = False) -> Exported:
    """A TorchScript file (``torch.jit.save``) or a program of ``torch.export.save``."""
    what = f"path {path}: neither a TorchScript file nor a program of torch.export"
    if not zipfile.is_zipfile(file):
        raise UserError(f"{what}, and its name ends with neither {' nor '.join(SUFFIXES)}")
    try:
        if is_script(file):
            return Exported(torch.jit.load(file, map_location="cpu").eval())
        extra = {"densekd.json": ""}
        program = load_program(file, extra, trusted=trusted).module()
        about = json.loads(extra["densekd.json"] or "{}")
        seen = about.get("model", {}).get("input", {}).get("mean", (0.0,) * 3)
        return Exported(program, deployed_input(about, len(seen), file))
    except UserError:
        raise
    except Exception as error:  # a file that is made to fail can raise anything
        raise UserError(f"{what} ({first_line(error)})") from error
