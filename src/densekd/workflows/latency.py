"""`latency`: what one image costs a model, in PyTorch and as an ONNX file."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from densekd.errors import UserError
from densekd.export import onnx_runner
from densekd.profiling.cost import count_macs, count_parameters
from densekd.profiling.measure import interleave, timed
from densekd.workflows.load import LoadedModel

SIZE = (192, 256)  # where neither the user nor the model says


@torch.no_grad()
def latency(
    model: LoadedModel,
    *,
    size: tuple[int, int] | None = None,
    onnx: Path | None = None,
    threads: int | None = None,
    runs: int = 50,
) -> dict[str, Any]:
    """Parameters, MACs and the time of one image.

    Args:
        model: its own device is measured; the ONNX file runs on the CPU.
        size: (height, width) of the image; None takes the size the network was trained at, else `SIZE`.
        threads: of both; None takes PyTorch's own number.
        runs: that are counted; three come before. PyTorch and the file take turns.
    """
    size = size or model.input_spec.size or SIZE
    device = next(model.parameters()).device
    channels = model.input_spec.channels
    images = torch.rand(1, channels, *size, device=device)
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    try:
        macs = count_macs(model.model, channels, size)
        arms: dict[str, Callable[[], float]] = {
            "PyTorch": partial(timed, partial(model, images), device)
        }
        if onnx is not None:
            arms["ONNX Runtime"] = _onnx_arm(onnx, images.cpu(), threads)
        seconds = interleave(arms, pairs=runs, warmup=3)
    finally:
        torch.set_num_threads(before)
    return {
        "model": str(model.path),
        "size": list(size),
        "device": str(device),
        "threads": threads,
        "parameters": count_parameters(model.model),
        "macs": macs,
        "runs": runs,
        "milliseconds": {name: milliseconds(values) for name, values in seconds.items()},
    }


def _onnx_arm(path: Path, images: torch.Tensor, threads: int) -> Callable[[], float]:
    array = images.numpy()
    try:
        run = onnx_runner(str(path), threads)
        run(array)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise UserError(
            f"--onnx {path}: does not run on {tuple(array.shape)}: {str(error).splitlines()[0]}"
        ) from error
    return partial(timed, partial(run, array), torch.device("cpu"))


def milliseconds(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * s for s in seconds)
    p95 = (
        statistics.quantiles(ordered, n=20, method="inclusive")[-1]
        if len(ordered) > 1
        else ordered[0]
    )
    return {"median": statistics.median(ordered), "p95": p95}


def as_text(result: dict[str, Any]) -> str:
    """A table for people."""
    height, width = result["size"]
    lines = [
        f"{result['parameters'] / 1e6:.3f} M parameters, {result['macs'] / 1e9:.3f} G MACs at {height}×{width}",
        f"one image, {result['threads']} threads, {result['runs']} runs (PyTorch on {result['device']}):",
        f"  {'':<12}  {'median ms':>9}  {'p95 ms':>9}",
    ]
    lines += [
        f"  {name:<12}  {row['median']:>9.2f}  {row['p95']:>9.2f}"
        for name, row in result["milliseconds"].items()
    ]
    return "\n".join(lines)
