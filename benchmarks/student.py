"""A student's own training step on the CPU: its memory format, compilation and optimizer; and where its time goes.

    OMP_NUM_THREADS=1 python -m benchmarks.student [--network NAME ...] [--compile] [--pairs 10] [--clock cpu]

The step is forward, cross-entropy at the labels' size and backward, on random images. "compiled" is `torch.compile` of
network and loss together, on channels_last. The optimizers update the network's weights from fixed gradients. The
table of operators is the profiler's; that of convolutions is oneDNN's own account of one step: which of its kernels
ran, and the time spent in reorders (changes of layout) beside them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure
from densekd.losses import cross_entropy
from densekd.models import espnet, espnet_c, mobilenetv2plus, pspnet_resnet18
from densekd.types import DenseOutput

CLASSES = 11
NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int, int]]] = {
    "espnet_c": (espnet_c, (4, 3, 192, 256)),
    "espnet": (espnet, (4, 3, 192, 256)),
    "mobilenetv2plus": (mobilenetv2plus, (2, 3, 192, 192)),
    "pspnet_resnet18": (pspnet_resnet18, (2, 3, 192, 192)),
}
OPTIMIZERS: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def loss_of(network: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    output = network(images)
    return cross_entropy(output.prediction if isinstance(output, DenseOutput) else output, target)


def make_step(
    name: str, layout: str, images: Tensor, target: Tensor, *, compiled: bool = False
) -> Callable[[], None]:
    torch.manual_seed(0)
    network = NETWORKS[name][0](num_classes=CLASSES).train().to(memory_format=FORMATS[layout])
    images = images.contiguous(memory_format=FORMATS[layout])
    call: Callable[..., Tensor] = partial(loss_of, network)
    if compiled:
        call = torch.compile(call)

    def step() -> None:
        network.zero_grad()
        call(images, target).backward()

    return step


def make_updates(name: str, kind: type[torch.optim.Optimizer]) -> dict[str, Callable[[], Any]]:
    updates: dict[str, Callable[[], Any]] = {}
    for form, options in OPTIMIZERS.items():
        torch.manual_seed(0)
        network = NETWORKS[name][0](num_classes=CLASSES)
        for p in network.parameters():
            p.grad = torch.randn_like(p)
        more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        updates[form] = kind(network.parameters(), lr=1e-6, **more, **options).step  # pyrefly: ignore
    return updates


@contextmanager
def written_to(file: int) -> Iterator[None]:
    """What the process writes to its standard output, native code too, goes to an open file."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(file, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def kernels(step: Callable[[], None]) -> list[dict[str, Any]]:
    """oneDNN's account of one step: kind, direction, kernel -> calls and milliseconds, the longest first."""
    step()
    with tempfile.TemporaryFile("w+") as file:
        with written_to(file.fileno()), torch.backends.mkldnn.verbose(1):
            step()
        file.seek(0)
        lines = [line.split(",") for line in file if line.startswith("onednn_verbose")]
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for words in lines:
        if "exec" in words:  # ..., exec, cpu, KIND, KERNEL, DIRECTION, ..., MILLISECONDS
            kind, kernel, direction = words[words.index("exec") + 2 :][:3]
            found[kind, direction if kind != "reorder" else "", kernel].append(float(words[-1]))
    rows = [
        {"kind": kind, "direction": direction, "kernel": kernel, "calls": len(ms), "ms": sum(ms)}
        for (kind, direction, kernel), ms in found.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def operators(step: Callable[[], None]) -> dict[str, float]:
    """PyTorch operator -> its share of one step's time, without what it calls; the longest first."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    rows = [(event.key, event.self_cpu_time_total) for event in found.key_averages()]
    whole = sum(time for _, time in rows)
    return {key: time / whole for key, time in sorted(rows, key=lambda row: -row[1])[:12]}


def measure_network(
    name: str, rounds: measure.Rounds, *, dry: bool, compiled: bool
) -> dict[str, Any]:
    size = (2, 3, 64, 64) if dry else NETWORKS[name][1]
    device = torch.device("cpu")
    images = torch.rand(size)
    target = torch.randint(CLASSES, (size[0], *size[2:]))
    steps = {layout: make_step(name, layout, images, target) for layout in FORMATS}
    accounts = {layout: kernels(step) for layout, step in steps.items()}
    shares = {layout: operators(step) for layout, step in steps.items()}
    if compiled:
        steps["compiled"] = make_step(name, "channels_last", images, target, compiled=True)
    seconds = rounds.seconds(steps, device)
    optimizers = {}
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        found = rounds.seconds(make_updates(name, kind), device)
        optimizers[kind.__name__] = {
            "seconds": {form: measure.spread(values) for form, values in found.items()},
            "over_loop": {
                form: measure.ratio(values, found["loop"]) for form, values in found.items()
            },
        }
    return {
        "size": size,
        "seconds": {arm: measure.spread(values) for arm, values in seconds.items()},
        "over_contiguous": {
            arm: measure.ratio(values, seconds["contiguous"]) for arm, values in seconds.items()
        },
        "optimizers": optimizers,
        "kernels": accounts,
        "operators": shares,
        "raw_seconds": seconds,
    }


def tables(found: dict[str, dict[str, Any]]) -> str:
    steps, updates, convolutions, shares = [], [], [], []
    for name, result in found.items():
        of = f"{name}, {measure.times(result['size'])}"
        for arm, ratio in result["over_contiguous"].items():
            seconds = f"{result['seconds'][arm]['median']:.3f}"
            steps.append([of, arm, seconds, measure.with_interval(ratio)])
        for kind, update in result["optimizers"].items():
            ms = [f"{1000 * update['seconds'][form]['median']:.2f}" for form in OPTIMIZERS]
            updates.append([name, kind, *ms, measure.with_interval(update["over_loop"]["fused"])])
        for layout, found_shares in result["operators"].items():
            top = [
                f"{key.removeprefix('aten::')} {share:.1%}" for key, share in found_shares.items()
            ]
            shares.append([of, layout, ", ".join(top[:6])])
        for layout, rows in result["kernels"].items():
            total = sum(row["ms"] for row in rows) or 1.0
            for row in rows[:5]:
                what = f"{row['kind']} {row['direction']}".strip()
                share = f"{row['ms'] / total:.1%}"
                convolutions.append([of, layout, what, row["kernel"], str(row["calls"]), share])
            moved = sum(row["ms"] for row in rows if row["kind"] == "reorder")
            convolutions.append([of, layout, "all reorders", "", "", f"{moved / total:.1%}"])
    return "\n\n".join(
        [
            measure.table(["network", "step", "s", "over contiguous"], steps),
            measure.table(["network", "optimizer", "loop ms", "foreach ms", "fused ms", "fused over loop"], updates),
            measure.table(["network", "layout", "operators by their own share of the step"], shares),
            measure.table(["network", "layout", "what", "oneDNN's kernel", "calls", "of oneDNN's time"], convolutions),
        ]
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("student", __doc__, pairs=10)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--compile", action="store_true", help="also the compiled step (minutes)")
    args = parser.parse_args(arguments)
    measure.pick("cpu", args.clock)
    path, rounds = measure.begin(args, "student")
    found = measure.one_by_one(
        args.network,
        partial(measure_network, rounds=rounds, dry=args.dry, compiled=args.compile),
    )
    return measure.finish(
        "student", path, torch.device("cpu"), rounds, tables(found), threads=torch.get_num_threads(), networks=found
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
