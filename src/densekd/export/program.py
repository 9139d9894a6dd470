"""An exported file as a network again: what it says of itself, and a module that the tasks can ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from densekd.config.names import PROGRAMS
from densekd.errors import UserError, WeightsError, first_line
from densekd.export.graph import OUTPUTS
from densekd.export.onnx import Run, check_packages, session_runner
from densekd.export.openvino import check_openvino, compiled_runner
from densekd.export.tflite import open_tflite
from densekd.models.foreign._checked_program import load_program
from densekd.models.foreign._runtimes import onnx_session, openvino_about, openvino_program
from densekd.types import DecodedBoxes, FinalBoxes, InputSpec

EXPORTED = (*PROGRAMS, ".tflite")
RUNTIMES = {
    ".onnx": "ONNX Runtime",
    ".pt2": "torch.export",
    ".xml": "OpenVINO",
    ".tflite": "LiteRT",
}
NEEDED = ("model", "end", "multiple_of")  # entries that files of older versions lack


@dataclass(frozen=True)
class ExportedFile:
    """What `densekd export` wrote.

    Attributes:
        model: the description of its network, task and classes, as a weights file has it.
        about: all entries of the metadata.
        end: what the graph ends with, see `Deployed`.
        multiple_of: heights and widths must be multiples of it.
        size: (height, width) of a file that takes no other; None where sizes are free.
        trusted: as in `load_program`; whoever opens the file again may trust it as much and no more.
    """

    path: Path
    run: Run
    about: dict[str, Any]
    size: tuple[int, int] | None = None
    trusted: bool = False

    @property
    def model(self) -> dict[str, Any]:
        return self.about["model"]

    @property
    def end(self) -> str:
        return self.about["end"]

    @property
    def multiple_of(self) -> int:
        return int(self.about["multiple_of"])

    @property
    def runtime(self) -> str:
        return RUNTIMES[self.path.suffix]

    def refusal(self, height: int, width: int) -> str:
        """Why it does not take images of this size; empty where it does."""
        if self.size is not None and self.size != (height, width):
            return f"takes images of {self.size[0]}x{self.size[1]} alone"
        unit = self.multiple_of
        return f"takes multiples of {unit}" if height % unit or width % unit else ""

    def files(self) -> list[Path]:
        """All files that it consists of."""
        weights = self.path.with_suffix(".bin")
        return [self.path, weights] if self.path.suffix == ".xml" else [self.path]


def open_exported(path: Path, threads: int | None = None, *, trusted: bool = False) -> ExportedFile:
    """An ONNX, torch.export, OpenVINO or TensorFlow Lite file that `densekd export` wrote.

    Args:
        threads: of one operator; None takes all cores.
        trusted: as in `load_program`.

    Raises:
        WeightsError: there is no such file, its runtime cannot read it, or it is of another origin.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    size = None
    try:
        if path.suffix == ".onnx":
            check_packages()
            session = onnx_session(str(path), threads)
            texts, run = session.get_modelmeta().custom_metadata_map, session_runner(session)
        elif path.suffix == ".xml":
            check_openvino()
            model, compiled = openvino_program(path, threads)
            texts, run = openvino_about(model), compiled_runner(compiled)
        elif path.suffix == ".tflite":
            texts, run, size = open_tflite(path, threads)
        else:
            texts, run = read_pt2(path, trusted=trusted)
        about = {key: _value(value) for key, value in texts.items()}
    except UserError:
        raise
    except Exception as error:  # the runtimes have no common base class
        raise WeightsError(f"{path}: cannot be read: {first_line(error)}") from error
    missing = [key for key in NEEDED if key not in about]
    if missing:
        raise WeightsError(
            f"{path}: does not say which network it is of (no {', '.join(missing)} in its metadata); only files that "
            "this version of densekd export wrote can be scored and asked. Export the model again"
        )
    if not _is_description(about):
        raise WeightsError(
            f"{path}: its description is not one that densekd export writes; export the model again"
        )
    return ExportedFile(path, run, about, size, trusted)


def _is_description(about: dict[str, Any]) -> bool:
    """Whether the entries that are read have the form in which they are written."""
    model = about["model"]
    if not (isinstance(model, dict) and isinstance(model.get("classes"), list)):
        return False
    try:
        InputSpec(**model["input"])
        unit = int(about["multiple_of"])
    except (TypeError, ValueError, KeyError):
        return False
    return (
        unit > 0 and about["end"] in (*OUTPUTS, "none") and isinstance(about.get("kind", ""), str)
    )


def _value(text: Any) -> Any:
    """Lists and objects are JSON, plain text is itself."""
    if not isinstance(text, str) or text[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_pt2(path: Path, *, trusted: bool) -> tuple[dict[str, Any], Run]:
    extra = {"densekd.json": ""}
    module = load_program(path, extra, trusted=trusted).module()

    def run(images: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        with torch.no_grad():
            found = module(torch.from_numpy(images))
        if isinstance(found, Tensor):
            return found.numpy()
        return tuple(output.numpy() for output in found)

    return json.loads(extra["densekd.json"] or "{}"), run


def padded(images: Tensor, unit: int, fill: Sequence[float]) -> Tensor:
    """Images (N, C, H, W) grown at the bottom and right to multiples of `unit` with a colour."""
    right, below = -images.shape[-1] % unit, -images.shape[-2] % unit
    if not right and not below:
        return images
    colour = images.new_tensor(fill).view(1, -1, 1, 1)
    return functional.pad(images - colour, (0, right, 0, below)) + colour


class Program(nn.Module):
    """An exported file in a network's place: RGB images in [0, 1] -> what the task decodes.

    Classes come back as maps of 0 and 1, one a class, so that windows, scales and flips vote. Sizes that the file does
    not take are padded at the bottom and right with the mean colour, and the answer is cut; that is not what PyTorch
    does with such an image. A file of one size takes that alone.
    """

    no_taps = "an exported file has no modules to be tapped; compare its predictions"

    def __init__(self, file: ExportedFile) -> None:
        super().__init__()
        self.file = file
        spec = InputSpec(**file.model["input"])
        zeros, ones = (0.0,) * spec.channels, (1.0,) * spec.channels
        self.input_spec = InputSpec(mean=zeros, std=ones, size=file.size)
        self.fill = [value / 255 for value in spec.fill()]
        self.classes = len(file.model["classes"])

    def forward(self, images: Tensor) -> dict[str, Any]:
        height, width = images.shape[-2:]
        seen, unit = images.float().cpu(), self.file.multiple_of
        refusal = self.file.refusal(height, width)
        if refusal and self.file.size is not None:
            raise UserError(
                f"{self.file.path} {refusal} and the image is {height}x{width}; resize the images, export the model "
                f"with --size {height} {width}, or score larger images by evaluate.window "
                f"{list(self.file.size)}"
            )
        if refusal and self.file.end == "none":
            raise UserError(
                f"{self.file.path} {refusal} and the image is {height}x{width}; export the model with its decoding "
                "(without --with none), or resize the image"
            )
        seen = padded(seen, unit, self.fill)
        try:
            answer = self.file.run(np.ascontiguousarray(seen.numpy()))
        except Exception as error:  # the runtimes have no common base class
            taken = self.file.about.get("input", "")
            raise UserError(
                f"{self.file.path} does not run on {tuple(seen.shape)}: {first_line(error)}. "
                f"It takes {taken}"
            ) from error
        parts = [
            torch.from_numpy(np.asarray(a))
            for a in (answer if isinstance(answer, tuple) else (answer,))
        ]
        return {"out": self._decodable([part.to(images.device) for part in parts], height, width)}

    def _decodable(self, parts: list[Tensor], height: int, width: int) -> Any:
        if self.file.end == "boxes":
            boxes, scores, levels = parts
            limit = boxes.new_tensor([width, height, width, height])
            return DecodedBoxes(boxes.minimum(limit), scores, levels, self.file.about["kind"])
        if self.file.end == "detections":
            boxes, scores, labels = parts
            limit = boxes.new_tensor([width, height, width, height])
            return FinalBoxes(boxes.minimum(limit), scores, labels)
        if self.file.end == "none":
            return parts[0]
        cut = parts[0][..., :height, :width]
        if self.file.end == "metres":
            return cut
        return functional.one_hot(cut.long(), self.classes).movedim(-1, 1).float()
