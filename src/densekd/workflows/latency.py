"""`latency`: what one image costs networks and exported files, beside their scores."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekd.engine.folder import RunFolder, result_beside
from densekd.errors import UserError, first_line
from densekd.export import ExportedFile, Program, onnx_runner, open_exported
from densekd.ops.files import write_text
from densekd.ops.names import bytes_text
from densekd.profiling.cost import count_macs, count_parameters
from densekd.profiling.measure import interleave, peak_memory, timed
from densekd.report.pareto import Point, pareto_svg
from densekd.rewrite import is_int8
from densekd.workflows.export import export
from densekd.workflows.int8 import Int8
from densekd.workflows.load import LoadedModel

SIZE = (192, 256)  # where neither the user nor the model says
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "int8": ".int8.onnx"}


@dataclass(frozen=True)
class Arm:
    """One way to run one network.

    Attributes:
        owner: the row of the network that it is of.
        bytes: of its files.
    """

    name: str
    runtime: str
    owner: int
    call: Callable[[], Any]
    device: torch.device
    bytes: int


@torch.no_grad()
def latency(
    models: Sequence[LoadedModel],
    names: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    onnx: Path | None = None,
    formats: Sequence[str] = (),
    threads: int | None = None,
    runs: int = 50,
) -> dict[str, Any]:
    """Parameters, MACs, memory and the time of one image; all take turns.

    Args:
        models: each is measured on its own device; exported files run on the CPU.
        names: one a model.
        size: (height, width) of the image; None takes that of a file of one size, else the size the first network was
            trained at, else `SIZE`.
        onnx: one more file, of the first model.
        formats: of `FORMATS`; each network is exported into a temporary folder and measured there too. An int8 file is
            calibrated on random images, for its time alone.
        threads: of all; None takes PyTorch's own number.
        runs: that are counted; three come before.
    """
    size = size or _own_size(models) or SIZE
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    try:
        networks = [describe(model, name, size) for model, name in zip(models, names, strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            arms = list(_arms(models, names, size, onnx, formats, threads, Path(folder)))
            memory = [_first_call(arm) for arm in arms]
            calls = {str(i): partial(timed, arm.call, arm.device) for i, arm in enumerate(arms)}
            seconds = list(interleave(calls, pairs=runs, warmup=2).values())
    finally:
        torch.set_num_threads(before)
    rows: list[dict[str, Any]] = [
        {
            **networks[arm.owner],
            "name": arm.name,
            "runtime": arm.runtime,
            "device": str(arm.device),
            "bytes": arm.bytes,
            "memory": peak,
            **milliseconds(values),
        }
        for arm, peak, values in zip(arms, memory, seconds, strict=True)
    ]
    if "int8" in formats:
        for row in rows:
            if row["runtime"].endswith("int8"):
                row["score"] = None
    first = [row for arm, row in zip(arms, rows, strict=True) if arm.owner == 0]
    return {
        "model": str(models[0].path),
        "size": list(size),
        "device": first[0]["device"],
        "threads": threads,
        "parameters": first[0]["parameters"],
        "macs": first[0]["macs"],
        "runs": runs,
        "milliseconds": {row["runtime"]: {k: row[k] for k in ("median", "p95")} for row in first},
        "rows": rows,
    }


def _own_size(models: Sequence[LoadedModel]) -> tuple[int, int] | None:
    files = [model.input_spec.size for model in models if isinstance(model.model, Program)]
    return next((size for size in files if size), models[0].input_spec.size)


def describe(model: LoadedModel, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """What a network is, whatever runs it; an exported file does not say its parameters and MACs."""
    known = not isinstance(model.model, Program)
    column = model.task.columns[0]
    return {
        "network": name,
        "path": str(model.path),
        "parameters": count_parameters(model.model) if known else None,
        "macs": count_macs(model.model, model.input_spec.channels, size) if known else None,
        "score": score_of(model),
        "heading": column.heading,
        "factor": column.factor,
        "decimals": column.decimals,
        "smaller_is_better": column.key in model.task.smaller_is_better,
    }


def score_of(model: LoadedModel) -> float | None:
    """The main score of a run's last weights, as its result.json has it; None where there is none."""
    if model.path != RunFolder(model.path.parent.parent).student:
        return None
    scores = result_beside(model.path).get("scores") or {}
    return scores.get(model.task.columns[0].key)


def _arms(
    models: Sequence[LoadedModel],
    names: Sequence[str],
    size: tuple[int, int],
    onnx: Path | None,
    formats: Sequence[str],
    threads: int,
    folder: Path,
) -> Iterator[Arm]:
    cpu = torch.device("cpu")
    for number, (model, name) in enumerate(zip(models, names, strict=True)):
        images = torch.rand(1, model.input_spec.channels, *size, device=model.device)
        if isinstance(model.model, Program):
            file = open_exported(model.path, threads, trusted=model.model.file.trusted)
            yield _file_arm(file, name, file.runtime, number, images)
            continue
        stored = model.path.stat().st_size
        yield Arm(name, "PyTorch", number, partial(model, images), model.device, stored)
        for kind in formats:
            out = folder / f"{number}{FORMATS[kind]}"
            static = kind == "int8" and not is_int8(model.model)
            random = _random_int8(model, size) if static else None
            export(LoadedModel(model.model.cpu(), model.task, model.input_spec, model.about, model.path).eval(),
                   out, size=size, int8=random)  # fmt: skip
            file = open_exported(out, threads)
            title = "ONNX Runtime int8" if kind == "int8" else file.runtime
            yield _file_arm(file, name, title, number, images.cpu())
        model.to(images.device)
    if onnx is not None:
        array = np.random.default_rng(0).random(
            (1, models[0].input_spec.channels, *size), np.float32
        )
        try:
            run = onnx_runner(str(onnx), threads)
            run(array)
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise UserError(
                f"--onnx {onnx}: does not run on {tuple(array.shape)}: {first_line(error)}"
            ) from error
        yield Arm(names[0], "ONNX Runtime", 0, partial(run, array), cpu, onnx.stat().st_size)


def _file_arm(file: ExportedFile, name: str, runtime: str, owner: int, images: torch.Tensor) -> Arm:
    height, width = images.shape[-2:]
    refusal = file.refusal(height, width)
    if refusal:
        raise UserError(f"--size {height} {width}: {name} in {runtime} {refusal}")
    stored = sum(part.stat().st_size for part in file.files())
    call = partial(file.run, images.numpy())
    return Arm(name, runtime, owner, call, torch.device("cpu"), stored)


def _random_int8(model: LoadedModel, size: tuple[int, int]) -> Int8:
    draw = np.random.default_rng(0)

    def images() -> Iterator[np.ndarray]:
        for _ in range(2):
            yield draw.integers(0, 256, (*size, model.input_spec.channels), dtype=np.uint8)

    return Int8(images, "random images", lambda h, w: (h, w), None, model.task.columns[0])


def _first_call(arm: Arm) -> int | None:
    """By how many bytes the first call raises the memory of the process (of the GPU: its peak); None if unknown."""
    before = _resident()
    peak = peak_memory(arm.call, arm.device)
    if peak is None or arm.device.type == "cuda":
        return peak
    return None if before is None else max(0, peak - before)


def _resident() -> int | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = (line for line in text.splitlines() if line.startswith("VmRSS"))
    return next((int(line.split()[1]) * 1024 for line in lines), None)


def milliseconds(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * s for s in seconds)
    p95 = (
        statistics.quantiles(ordered, n=20, method="inclusive")[-1]
        if len(ordered) > 1
        else ordered[0]
    )
    return {"median": statistics.median(ordered), "p95": p95}


def check_plot(path: Path) -> None:
    if path.suffix != ".svg":
        raise UserError(f"--plot {path}: expected a name that ends with .svg")
    if path.exists():
        raise UserError(f"--plot {path} exists; give another name")


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Score against time of the rows whose score is known.

    Raises:
        UserError: no score is known, or the networks have different ones.
    """
    rows = [row for row in result["rows"] if row["score"] is not None]
    if not rows:
        raise UserError(
            "--plot: no score is known; give the folders of finished runs (their result.json has it), or --scores"
        )
    headings = {row["heading"] for row in rows}
    if len(headings) > 1:
        raise UserError(f"--plot: the networks are scored by {' and '.join(sorted(headings))}")
    points = [
        Point(row["name"], row["median"], row["factor"] * row["score"], row["runtime"])
        for row in rows
    ]
    height, width = result["size"]
    where = f"{height}×{width}, {result['threads']} threads, {result['device']}"
    smaller = rows[0]["smaller_is_better"]
    write_text(path, pareto_svg(points, heading=rows[0]["heading"], where=where, smaller=smaller))


def as_text(result: dict[str, Any]) -> str:
    """A table for people."""
    height, width = result["size"]
    rows = result["rows"]
    heading = rows[0]["heading"]
    header = ("", "runtime", "params M", "G MACs", "file", "memory", "median ms", "p95 ms", heading)
    table = [header, *(_cells(row) for row in rows)]
    if all(row["score"] is None for row in rows):
        table = [line[:-1] for line in table]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    what = f"one image of {height}×{width}, {result['threads']} threads, {result['runs']} runs"
    return "\n".join(
        [what, *lines, "memory: by how much the first call raises that of the process"]
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    score, device = row["score"], row["device"]
    return (
        row["name"],
        row["runtime"] + ("" if device == "cpu" else f" ({device})"),
        "-" if row["parameters"] is None else f"{row['parameters'] / 1e6:.3f}",
        "-" if row["macs"] is None else f"{row['macs'] / 1e9:.3f}",
        bytes_text(row["bytes"]),
        "-" if row["memory"] is None else bytes_text(row["memory"]),
        f"{row['median']:.2f}",
        f"{row['p95']:.2f}",
        "-" if score is None else f"{row['factor'] * score:.{row['decimals']}f}",
    )
