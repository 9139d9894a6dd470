"""What the pair-wise term costs, against the same value from the plain n×n matrices of cosines.

    python -m benchmarks.pair_wise [--nodes 1024 4096 16384] [--channels 64 256] [--pairs 5] [--dry] [--output FILE]

One image, cosines of all nodes, forward and backward. Memory is what a call adds, measured in a fresh process for
each form: as tensors (PyTorch's profiler) and, on the CPU, as the process sees it, with what its allocator loses.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import tensor_peak  # noqa: F401 (other scripts look for it here)
from densekd.losses import pair_wise


def plain(student: Tensor, teacher: Tensor) -> Tensor:
    """The baseline: both matrices of cosines, their difference, its square."""
    s, t = (F.normalize(x.flatten(2), dim=1) for x in (student, teacher))
    return (s.mT @ s - t.mT @ t).square().mean()


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "densekd": partial(pair_wise, granularity=1),
}


def make_pair(nodes: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    student = torch.randn(1, channels, 1, nodes, generator=g).to(device).requires_grad_()
    return student, torch.randn(1, channels, 1, nodes, generator=g).to(device)


def call(form: str, student: Tensor, teacher: Tensor) -> Tensor:
    """Forward and backward."""
    loss = FORMS[form](student, teacher)
    loss.backward()
    student.grad = None
    return loss.detach()


def extra_memory(form: str, nodes: int, channels: int, kind: str) -> dict[str, int | None]:
    """What one call adds, in bytes."""
    device = torch.device(kind)
    call(form, *make_pair(64, channels, device))  # what the first call of all loads
    return measure.extra_memory(partial(call, form, *make_pair(nodes, channels, device)), device)


def measure_size(
    nodes: int, channels: int, device: torch.device, *, pairs: int, warmup: int, clock: str
) -> dict[str, Any]:
    student, teacher = make_pair(nodes, channels, device)
    arms = {
        form: partial(measure.timed, partial(call, form, student, teacher), device, clock)
        for form in FORMS
    }
    seconds = measure.interleave(arms, pairs=pairs, warmup=warmup)
    values = {form: call(form, student, teacher).item() for form in FORMS}
    return {
        "seconds": {form: measure.spread(found) for form, found in seconds.items()},
        "times_faster": measure.ratio(seconds["plain"], seconds["densekd"]),
        "extra_bytes": {
            form: measure.in_fresh_process(extra_memory, form, nodes, channels, device.type)
            for form in FORMS
        },
        "relative_difference": abs(values["densekd"] / values["plain"] - 1),
        "raw_seconds": seconds,
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """k of the power law values ∝ sizes^k, by least squares on logarithms; None of fewer than two sizes."""
    if len(sizes) < 2:
        return None
    x, y = [math.log(v) for v in sizes], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def exponents(found: Mapping[int, dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Of time and of the tensors' memory, for each form."""
    return {
        form: {
            "seconds": exponent(
                list(found), [f["seconds"][form]["median"] for f in found.values()]
            ),
            "tensors": exponent(
                list(found), [f["extra_bytes"][form]["tensors"] for f in found.values()]
            ),
        }
        for form in FORMS
    }


def as_table(found: Mapping[int, Mapping[int, dict[str, Any]]]) -> str:
    head = ["channels", "nodes", "plain s", "densekd s", "times faster", "plain MiB", "densekd MiB"]
    head += ["times less", "of the process"]
    rows = []
    for channels, sizes in found.items():
        for nodes, size in sizes.items():
            faster = size["times_faster"]
            plain, ours = (size["extra_bytes"][form] for form in FORMS)
            process = "–"
            if plain["process"] is not None:
                process = f"{plain['process'] / 2**20:.0f} / {ours['process'] / 2**20:.0f}"
            rows.append(
                [
                    str(channels), str(nodes),
                    *(f"{size['seconds'][form]['median']:.4f}" for form in FORMS),
                    f"{faster['median']:.1f} [{faster['interval'][0]:.1f}, {faster['interval'][1]:.1f}]",
                    *(f"{m['tensors'] / 2**20:.1f}" for m in (plain, ours)),
                    f"{plain['tensors'] / ours['tensors']:.1f}", process,
                ]
            )  # fmt: skip
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pair_wise", description=__doc__.split("\n")[0]
    )
    measure.common_arguments(parser, pairs=5)
    parser.add_argument("--nodes", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--channels", nargs="+", type=int, default=[64, 256])
    args = parser.parse_args(arguments)
    device = measure.pick(args.device)
    path = measure.output_path(args.output, "pair_wise" + ("-dry" if args.dry else ""))
    pairs, warmup = (2, 1) if args.dry else (args.pairs, args.warmup)
    nodes, channels = ([256, 512], [16]) if args.dry else (args.nodes, args.channels)
    found = {
        c: {
            n: measure_size(n, c, device, pairs=pairs, warmup=warmup, clock=args.clock)
            for n in nodes
        }
        for c in channels
    }
    powers = {c: exponents(sizes) for c, sizes in found.items()}
    result = measure.record(
        "pair_wise", device, clock=args.clock, pairs=pairs, warmup=warmup, channels=found, exponents=powers
    )  # fmt: skip
    measure.write(result, path)
    print(as_table(found))
    for c, forms in powers.items():
        for form, power in forms.items():
            told = [f"{k} ∝ nodes^{v:.2f}" for k, v in power.items() if v is not None]
            print(f"{c} channels, {form}: {', '.join(told)}")
    print(f"median of {pairs} interleaved rounds [95 % interval]; written to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
