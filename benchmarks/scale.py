"""The pieces from which docs/scale.md works out what many GPUs and many images take.

    python -m benchmarks.scale --device cpu [--dry]

Of each pair of networks: the bytes of gradients and buffers that a step sends, of a checkpoint and of the weights
alone, and the seconds that writing and reading them takes. Of a set: seconds and bytes for a million samples' order,
and for each pair of files that is listed. Everything is one process on the CPU.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks import measure
from benchmarks.cases import CASES, STANDARD, Case, make_case, make_step
from densekd.data import Folder
from densekd.data.stream import order
from densekd.engine.checkpoint import load_checkpoint, save_atomic
from densekd.engine.launch import started
from densekd.engine.step import bare
from densekd.models.weights import save_weights


def seconds(call: Callable[[], Any], count: int) -> list[float]:
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return found


def size_of(tensors: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def measure_networks(
    case: Case, device: torch.device, folder: Path, count: int, dry: bool
) -> dict[str, Any]:
    config, distiller, batch = make_case(case, device, dry=dry)
    step = make_step(config, distiller, device)
    step([batch], 0)  # now the optimizers have their momenta
    student = bare(distiller.student)
    assert distiller.adversary is not None
    critic: nn.Module = distiller.adversary.discriminator
    state = {
        "student": student.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "discriminator": critic.state_dict(),
    }
    last, weights = folder / "last.pt", folder / "student.safetensors"
    written = seconds(lambda: save_atomic(state, last), count)
    read = seconds(lambda: load_checkpoint(last), count)
    save_weights(student.model, weights, {})
    return {
        "gradients": size_of(p for p in student.parameters() if p.requires_grad),
        "buffers": size_of(student.buffers()),
        "discriminator": size_of(critic.parameters()),
        "teacher": size_of(
            p for teacher in distiller.teachers.values() for p in teacher.parameters()
        ),
        "checkpoint": last.stat().st_size,
        "weights": weights.stat().st_size,
        "write": measure.spread(written),
        "read": measure.spread(read),
    }


def measure_order(samples: int, count: int) -> dict[str, Any]:
    """An epoch's order, which each loader process makes for itself."""
    return {
        "samples": samples,
        "bytes": order(0, 0, samples).nbytes,
        "seconds": measure.spread(seconds(lambda: order(0, 1, samples), count)),
    }


def measure_listing(pairs: int, folder: Path) -> dict[str, Any]:
    """A folder of so many image files and masks, opened: nothing is decoded."""
    images, masks = folder / "train" / "images", folder / "train" / "masks"
    for place in (images, masks):
        place.mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / "one.png")
    content = (folder / "one.png").read_bytes()
    for i in range(pairs):
        for place in (images, masks):
            (place / f"frame_{i:09d}.png").write_bytes(content)
    open_folder = lambda: Folder(folder, "train", classes=["a", "b"])  # noqa: E731
    open_folder()
    taken = seconds(open_folder, 3)
    tracemalloc.start()
    kept = open_folder()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"pairs": len(kept), "bytes": memory, "seconds": measure.spread(taken)}


def as_tables(
    networks: dict[str, Any], epoch: dict[str, Any], listing: dict[str, Any]
) -> tuple[str, str]:
    rows = [
        [
            name,
            *(f"{row[k] / 1e6:.2f}" for k in ("gradients", "buffers", "discriminator")),
            *(f"{row[k] / 1e6:.2f}" for k in ("teacher", "checkpoint", "weights")),
            f"{row['write']['median']:.3f}",
            f"{row['read']['median']:.3f}",
        ]
        for name, row in networks.items()
    ]
    head = ["pair", "gradients MB", "buffers MB", "discriminator MB", "teacher MB", "last.pt MB"]
    head += ["weights MB", "write s", "read s"]
    per_sample = [
        ["an epoch's order", str(epoch["samples"]), epoch["bytes"], epoch["seconds"]["median"]],
        ["files listed", str(listing["pairs"]), listing["bytes"], listing["seconds"]["median"]],
    ]
    each = [
        [name, count, f"{size / int(count):.1f}", f"{1e6 * taken / int(count):.2f}"]
        for name, count, size, taken in per_sample
    ]
    return (
        measure.table(head, rows),
        measure.table(["what", "samples", "bytes a sample", "µs a sample"], each),
    )


def main(arguments: list[str] | None = None) -> int:
    parser: argparse.ArgumentParser = measure.make_parser("scale", __doc__, pairs=5)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=STANDARD)
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, f"scale-{device.type}")
    count = 2 if args.dry else args.pairs
    with started(device.type), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        networks = measure.one_by_one(
            args.case,
            lambda case: measure_networks(CASES[case], device, folder, count, args.dry),
        )
        epoch = measure_order(10_000 if args.dry else 10_000_000, count)
        listing = measure_listing(50 if args.dry else 10_000, folder / "set")
    return measure.finish(
        "scale",
        path,
        device,
        rounds,
        *as_tables(networks, epoch, listing),
        cases=networks,
        order=epoch,
        listing=listing,
    )


if __name__ == "__main__":
    raise SystemExit(main())
