"""The cost of the pair-wise term against the same value from the plain n×n matrices, and its exactness.

    python -m benchmarks.pair_wise [--nodes 1024 4096 16384] [--channels 64 256] [--pairs 5] [--dry] [--output FILE]

One image, forward and backward: cosines of all nodes at each size, then the other affinities and windows at the last
number of channels. Memory is what a call adds, measured in a fresh process for each form: as tensors (PyTorch's
profiler) and, on the CPU, as the process sees it, with what its allocator loses. Errors are those of value and gradient
against plain matrices in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from densekd.losses import pair_wise

# The variants of the term.
ASKED: dict[str, dict[str, Any]] = {
    "cosine": {},
    "sigmoid": {"affinity": "sigmoid"},
    "softmax": {"affinity": "softmax"},
    "window 3": {"connection_range": 3},
    "window 0.5": {"connection_range": 0.5},
}
FORMS = ("plain", "densekd")

Loss = Callable[[Tensor, Tensor], Tensor]


def plain(student: Tensor, teacher: Tensor, affinity: str, edges: Tensor | None) -> Tensor:
    """The baseline: both matrices, their difference, its square."""
    s, t = (_plain_affinity(x, affinity) for x in (student, teacher))
    square = (s - t).square()
    return square.mean() if edges is None else square.masked_fill(~edges, 0.0).sum() / edges.sum()


def _plain_affinity(x: Tensor, affinity: str) -> Tensor:
    x = F.normalize(x.flatten(2), dim=1)
    cosines = x.mT @ x
    if affinity == "cosine":
        return cosines
    return cosines.sigmoid() if affinity == "sigmoid" else cosines.softmax(dim=2)


def window_edges(window: int | float, grid: tuple[int, int]) -> Tensor:
    """(n, n) bool, True where a node lies in the window of another."""
    near = []
    for side in grid:
        w = window if isinstance(window, int) else max(3, 2 * round((window * side - 1) / 2) + 1)
        place = torch.arange(side)
        near.append(((place[:, None] - place).abs() <= w // 2).to(torch.uint8))
    return torch.kron(*near).bool()


def make_loss(form: str, asked: str, nodes: int, device: torch.device) -> Loss:
    options = ASKED[asked]
    if form == "densekd":
        return partial(pair_wise, granularity=1, **options)
    window = options.get("connection_range")
    edges = None if window is None else window_edges(window, grid_of(nodes)).to(device)
    return partial(plain, affinity=options.get("affinity", "cosine"), edges=edges)


def grid_of(nodes: int) -> tuple[int, int]:
    """Height and width, as square as the number allows."""
    height = next(d for d in range(math.isqrt(nodes), 0, -1) if nodes % d == 0)
    return height, nodes // height


def make_pair(nodes: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    shape = (1, channels, *grid_of(nodes))
    student = torch.randn(shape, generator=g).to(device).requires_grad_()
    return student, torch.randn(shape, generator=g).to(device)


def call(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    """Forward and backward."""
    value = loss(student, teacher)
    value.backward()
    student.grad = None
    return value.detach()


def extra_memory(
    form: str, asked: str, nodes: int, channels: int, kind: str
) -> dict[str, int | None]:
    """The bytes that one call adds."""
    device = torch.device(kind)
    # What the first call of all loads; small, or the allocator would keep what the measured one needs.
    call(make_loss(form, asked, 64, device), *make_pair(64, 8, device))
    loss, pair = make_loss(form, asked, nodes, device), make_pair(nodes, channels, device)
    return measure.extra_memory(partial(call, loss, *pair), device)


def measure_size(
    asked: str, nodes: int, channels: int, *, device: torch.device, rounds: measure.Rounds
) -> dict[str, Any]:
    pair = make_pair(nodes, channels, device)
    calls = {form: partial(call, make_loss(form, asked, nodes, device), *pair) for form in FORMS}
    seconds = rounds.seconds(calls, device)
    values = {form: run().item() for form, run in calls.items()}
    return {
        "seconds": {form: measure.spread(found) for form, found in seconds.items()},
        "times_faster": measure.ratio(seconds["plain"], seconds["densekd"]),
        "extra_bytes": {
            form: measure.in_fresh_process(extra_memory, form, asked, nodes, channels, device.type)
            for form in FORMS
        },
        "relative_difference": abs(values["densekd"] / values["plain"] - 1),
        "raw_seconds": seconds,
    }


def alike(kind: str, noise: float, nodes: int, channels: int) -> tuple[Tensor, Tensor]:
    """A student, and a teacher that is random, or the student with noise, or that with its channels turned."""
    student, other = (x.detach() for x in make_pair(nodes, channels, torch.device("cpu")))
    if kind == "random":
        return student, other
    teacher = student + noise * other
    if kind == "turned":
        g = torch.Generator().manual_seed(1)
        axes = torch.linalg.qr(torch.randn(channels, channels, generator=g, dtype=torch.float64))[0]
        teacher = torch.einsum("dc,nchw->ndhw", axes, teacher.double()).float()
    return student, teacher


def measure_errors(
    asked: str, kind: str, noise: float, nodes: int, channels: int, device: torch.device
) -> dict[str, Any]:
    """Relative errors of both forms against plain matrices in float64."""
    student, teacher = (x.to(device) for x in alike(kind, noise, nodes, channels))

    def run(form: str, s: Tensor, t: Tensor) -> tuple[float, Tensor]:
        s = s.requires_grad_()
        value = make_loss(form, asked, nodes, device)(s, t)
        return value.item(), torch.autograd.grad(value, s)[0].double()

    value, gradient = run("plain", student.double(), teacher.double())
    found: dict[str, Any] = {
        "asked": asked, "teacher": kind, "noise": noise, "nodes": nodes, "channels": channels, "value": value
    }  # fmt: skip
    for form in FORMS:
        its_value, its_gradient = run(form, student, teacher)
        error = (its_gradient - gradient).norm() / gradient.norm()
        found[form] = {"value": abs(its_value / value - 1), "gradient": error.item()}
    return found


def all_errors(nodes: int, channels: int, device: torch.device) -> list[dict[str, Any]]:
    """Cosines at `nodes` (products of channels) and at fewer (rows), then other affinities."""
    few = nodes // 4
    random, noises = ("random", 1.0), (1e-3, 1e-4, 1e-5)
    cases = [("cosine", *random, nodes), ("cosine", *random, few)]
    cases += [
        ("cosine", k, x, n) for n in (nodes, few) for k in ("like it", "turned") for x in noises
    ]
    for affinity in ("sigmoid", "softmax"):
        cases += [(affinity, *random, few)]
        cases += [(affinity, k, 1e-3, few) for k in ("like it", "turned")]
    return [measure_errors(a, k, x, n, channels, device) for a, k, x, n in cases]


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


def as_table(found: Iterable[tuple[str, int, int, dict[str, Any]]]) -> str:
    head = ["asked", "channels", "nodes", "plain s", "densekd s", "times faster", "plain MiB"]
    head += ["densekd MiB", "times less", "of the process", "times less"]
    rows = []
    for asked, channels, nodes, size in found:
        plain, own = (size["extra_bytes"][form] for form in FORMS)
        process = ["–", "–"]
        if plain["process"] is not None:
            process = [
                f"{plain['process'] / 2**20:.0f} / {own['process'] / 2**20:.0f}",
                f"{plain['process'] / max(1, own['process']):.1f}",
            ]
        rows.append(
            [
                asked, str(channels), str(nodes),
                *(f"{size['seconds'][form]['median']:.4f}" for form in FORMS),
                measure.with_interval(size["times_faster"], 1),
                *(f"{m['tensors'] / 2**20:.1f}" for m in (plain, own)),
                f"{plain['tensors'] / own['tensors']:.1f}", *process,
            ]
        )  # fmt: skip
    return measure.table(head, rows)


def error_table(errors: Sequence[dict[str, Any]]) -> str:
    head = ["asked", "nodes", "teacher", "noise", "value"]
    head += [f"{form}: {what} off" for form in FORMS for what in ("value", "gradient")]
    rows = [
        [
            e["asked"], str(e["nodes"]), e["teacher"], f"{e['noise']:g}", f"{e['value']:.1e}",
            *(f"{e[form][what]:.0e}" for form in FORMS for what in ("value", "gradient")),
        ]
        for e in errors
    ]  # fmt: skip
    return measure.table(head, rows)


def fitted(powers: Mapping[int, dict[str, dict[str, float | None]]]) -> list[str]:
    """A line for each number of channels and each form."""
    lines = []
    for channels, forms in powers.items():
        for form, power in forms.items():
            told = [f"{k} ∝ nodes^{v:.2f}" for k, v in power.items() if v is not None]
            lines.append(f"{channels} channels, {form}: {', '.join(told)}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("pair_wise", __doc__, pairs=5)
    parser.add_argument("--nodes", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--channels", nargs="+", type=int, default=[64, 256])
    parser.add_argument(
        "--other-nodes", nargs="*", type=int, default=[4096], help="for what is not cosines of all"
    )
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, "pair_wise")
    nodes, channels = ([256, 512], [16]) if args.dry else (args.nodes, args.channels)
    others = [(asked, n) for n in args.other_nodes for asked in ASKED if asked != "cosine"]
    if args.dry:
        others = [("softmax", 256)]
    measured = partial(measure_size, device=device, rounds=rounds)
    errors = all_errors(512 if args.dry else 4096, channels[-1], device)
    found = {c: {n: measured("cosine", n, c) for n in nodes} for c in channels}
    forms = [
        {"asked": asked, "nodes": n, "channels": channels[-1], **measured(asked, n, channels[-1])}
        for asked, n in others
    ]
    powers = {c: exponents(sizes) for c, sizes in found.items()}
    rows = [("cosine", c, n, size) for c, sizes in found.items() for n, size in sizes.items()]
    rows += [(f["asked"], f["channels"], f["nodes"], f) for f in forms]
    return measure.finish(
        "pair_wise", path, device, rounds, as_table(rows), *fitted(powers), error_table(errors),
        channels=found, exponents=powers, forms=forms, errors=errors,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
