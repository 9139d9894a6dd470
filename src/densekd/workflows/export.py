"""`export`: a model as one file for another runtime, checked there before it is written."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import densekd
from densekd.errors import UserError
from densekd.export import (
    Gap,
    Graph,
    Program,
    check_coreml,
    check_openvino,
    check_package,
    check_packages,
    check_tflite,
    compare,
    coreml_runner,
    onnx_bytes,
    onnx_runner,
    open_exported,
    runs_here,
    save_coreml,
    save_openvino,
    save_tflite,
    trace,
)
from densekd.export.graph import DIVISOR, OF_BOXES, SMALLEST, end_of, example_size, fixed
from densekd.export.verify import ROUNDED_TOLERANCE, TOLERANCE
from densekd.ops.files import new_folder, open_atomic
from densekd.ops.names import bytes_text
from densekd.rewrite import is_int8
from densekd.workflows.int8 import Int8, int8_text, measured, quantised
from densekd.workflows.load import LoadedModel
from densekd.workflows.open_model import loaded_file, model_titles

FORMATS = {
    "onnx": ".onnx",
    "pt2": ".pt2",
    "openvino": ".xml",
    "tflite": ".tflite",
    "coreml": ".mlpackage",
}
INT8 = (".onnx", ".xml")
NMS = (".onnx", ".xml")  # formats whose graphs can hold it
ONE_SIZE = {".tflite": "TensorFlow Lite", ".mlpackage": "Core ML"}


def target(model: str, out: Path | None, format: str | None, *, int8: bool = False) -> Path:
    """The file that is written, checked before the model is loaded.

    Args:
        model: as it was named; the file takes its name where there is no `out`.

    Raises:
        UserError: the format does not fit the name, its packages are missing, or the file exists.
    """
    if out is None:
        if format is None:
            raise UserError(f"give --out FILE or --format {', '.join(FORMATS)}")
        (title,) = model_titles([model])
        out = Path(title + (".int8" if int8 else "") + FORMATS[format])
    if format is not None and out.suffix != FORMATS[format]:
        raise UserError(f"--out {out}: {format} ends with {FORMATS[format]}")
    if out.suffix not in FORMATS.values():
        raise UserError(
            f"--out {out}: expected a name that ends with {', '.join(FORMATS.values())}"
        )
    if int8 and out.suffix not in INT8:
        raise UserError(f"--int8: writes {' or '.join(INT8)} files, not {out.suffix}")
    for path in [out, *([out.with_suffix(".bin")] if out.suffix == ".xml" else [])]:
        if path.exists():
            raise UserError(f"--out {path} exists; give another name")
    if out.suffix in (".onnx", ".xml"):
        check_packages()
    if out.suffix == ".xml":
        check_openvino()
    if out.suffix == ".tflite":
        check_tflite()
    if out.suffix == ".mlpackage":
        check_coreml()
    return out


def export(
    model: LoadedModel,
    out: Path,
    *,
    size: tuple[int, int] | None = None,
    end: str | None = None,
    int8: Int8 | None = None,
) -> dict[str, Any]:
    """Write the file; returns what it is and how far it is from PyTorch.

    Args:
        model: on the CPU.
        size: (height, width) of the images that it is traced and checked with.
        end: ``"argmax"``, ``"metres"``, ``"boxes"``, ``"detections"``, ``"none"``, or None for the task's own.
        int8: the images that it is calibrated on and scored with; None writes float32.

    Raises:
        UserError: the network cannot be exported, or the file's answers differ; nothing is written.
    """
    target("", out, None, int8=int8 is not None)
    if isinstance(model.model, Program):
        raise UserError(
            f"{model.path} is an exported file; export the run or weights file that it was made of"
        )
    if int8 is not None and is_int8(model.model):
        raise UserError(
            f"--int8: {model.path} was trained to be int8 and is written so by itself; leave --int8 out"
        )
    end = end_of(model.task, end)
    if end in OF_BOXES and out.suffix == ".tflite":
        raise UserError("--out .tflite: detectors are not written as TensorFlow Lite; write .onnx")
    if end == "detections" and out.suffix not in NMS:
        raise UserError(
            f"--with detections: a graph in {out.suffix} has no NMS for batches; write {' or '.join(NMS)}, or take "
            "--with boxes"
        )
    one_size = out.suffix in ONE_SIZE
    if one_size and is_int8(model.model):
        raise UserError(
            f"--out {out.suffix}: {model.path} was trained to be int8, which is written as {' or '.join(INT8)}"
        )
    if one_size:
        size = size or model.input_spec.size
        if size is None or min(size) < SMALLEST:
            raise UserError(
                f"--size: a file of {ONE_SIZE[out.suffix]} takes images of one size; give it, at least {SMALLEST} "
                "pixels a side"
            )
        graph = fixed(model.model, model.task, model.input_spec, end, size)
    else:
        size = example_size(model.input_spec, size)
        plain = out.suffix == ".pt2"
        graph = trace(model.model, model.task, model.input_spec, end, size, plain=plain)
    about = description(model, graph)
    extra: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "draft" + out.suffix)
        if out.suffix == ".pt2":
            draft.write_bytes(_pt2_bytes(graph, about))
        elif out.suffix == ".tflite":
            save_tflite(graph, draft, about)
        elif out.suffix == ".mlpackage":
            save_coreml(graph, draft, about)
            check_package(graph, draft, about)
        else:
            content = onnx_bytes(graph, about)
            if int8 is not None:
                compare(graph, onnx_runner(content), out.name)  # what is quantised must be right
                content, extra = quantised(content, about, int8)
            onnx = draft.with_suffix(".onnx")
            onnx.write_bytes(content)
            if out.suffix == ".xml":
                save_openvino(onnx, draft, about)
        tolerance = ROUNDED_TOLERANCE if graph.int8 else TOLERANCE
        if out.suffix == ".mlpackage":
            gaps = _on_a_mac(graph, draft, out.name)
            parts = sorted(part for part in draft.rglob("*") if part.is_file())
        else:
            file = open_exported(draft)
            gaps = compare(graph, file.run, out.name, None if int8 is not None else tolerance)
            if int8 is not None and int8.score is not None:
                extra["scores"] = measured(int8, model, loaded_file(file))
            parts = file.files()
        size_bytes = sum(part.stat().st_size for part in parts)
        if draft.is_dir():
            with new_folder(out) as place:
                shutil.copytree(draft, place, dirs_exist_ok=True)
        else:
            for part in reversed(parts):  # the file that people name comes last
                with open_atomic(out.with_suffix(part.suffix), "wb") as written:
                    written.write(part.read_bytes())
    return {
        "file": str(out),
        "bytes": size_bytes,
        "output": about["output"],
        "input": about["input"],
        "checks": [_check(gap) for gap in gaps],
        "end": end,
        "trained_int8": graph.int8,
        **extra,
    }


def description(model: LoadedModel, graph: Graph) -> dict[str, Any]:
    """The metadata of the file."""
    sizes = "any" if graph.divisor == 1 else f"multiples of {graph.divisor}"
    for side, (low, high) in zip(("heights", "widths"), graph.limits, strict=True):
        if low > 2 * DIVISOR or high is not None:
            sizes += f", {side} from {low}" + ("" if high is None else f" to {high}")
    if graph.fixed:
        sizes = f"{graph.example[0]}x{graph.example[1]} alone, one image a call"
    channels = model.input_spec.channels
    colours = "RGB" if channels == 3 else f"{channels} channels,"
    named = model.about.get("model", {}).get("name", type(model.model).__name__)
    outputs = {
        "argmax": "classes (N, H, W): the class of each pixel",
        "metres": "depth (N, 1, H, W) in metres",
        "none": "prediction: the network's own maps, (N, K, h, w)",
        "detections": "boxes (N, D, 4) XYXY in pixels, scores (N, D), labels (N, D): after NMS, best first, at most "
        f"{getattr(model.task, 'detections_per_image', 0)}; scores 0 and labels -1 where there are fewer",
        "boxes": "boxes (N, P, 4) XYXY in pixels, scores (N, P, K) in [0, 1], levels (P): before the threshold and NMS",
    }
    return {
        "densekd": densekd.__version__,
        "task": model.task.name,
        "network": named,
        "classes": model.classes,
        "palette": model.palette or [],
        "input": f"images (N, {channels}, H, W), {colours} float32 in [0, 1]; normalised in the graph; sizes: {sizes}",
        "output": outputs[graph.module.end],
        "note": model.about.get("note", ""),
        "model": model.about,
        "end": graph.module.end,
        "kind": graph.module.kind,
        "multiple_of": str(graph.divisor),
    }


def _on_a_mac(graph: Graph, package: Path, who: str) -> list[Gap]:
    """The check of a Core ML package's answers; none where Core ML does not run."""
    if not runs_here():
        return []
    return compare(graph, coreml_runner(package, graph.module.outputs), who)


def _check(gap: Gap) -> dict[str, Any]:
    return {"shape": list(gap.shape), "error": gap.error, "differing": gap.differing}


def _pt2_bytes(graph: Graph, about: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.export.save(graph.program, file, extra_files={"densekd.json": json.dumps(about)})
    return file.getvalue()


def as_text(result: dict[str, Any]) -> str:
    """A few lines for people."""
    lines = [
        f"{result['file']}: {bytes_text(result['bytes'])}",
        f"takes {result['input']}",
        f"gives {result['output']}",
    ]
    for check in result["checks"]:
        shape = "×".join(map(str, check["shape"]))
        things = "boxes" if result["end"] == "detections" else "pixels"
        other = f", {check['differing']:.2%} of the {things} differ" if check["differing"] else ""
        if "calibrated" in result:
            lines.append(
                f"runs at {shape}"
            )  # on noise int8 differs much; the score says what counts
        else:
            how = " on average" if result["trained_int8"] else ""
            lines.append(f"equals PyTorch at {shape} within {check['error']:.1g}{how}{other}")
    if not result["checks"]:
        lines.append(
            "its answers were not checked, since Core ML runs on a Mac alone. Its input, outputs, shapes and "
            "description were read back and are right; exported on a Mac, it is compared with PyTorch too"
        )
    if "calibrated" in result:
        lines += int8_text(result)
    return "\n".join(lines)
