"""Memory and time of a training step whose norms and activations keep less for backward, against torch's own way.

    python -m benchmarks.norms [--case NAME ...] [--pairs 10] [--kept] [--dry] [--output FILE]

One step is forward, the mean square of the outputs, backward; gradients of the weights are there before, so that memory
is that of the maps. --kept counts, instead of times and peaks, the tensors that a forward leaves for backward, without
the workspace of convolutions. `plain` is torch's norm, then the activation, in place where the network says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure
from densekd.layers import ABN
from densekd.models import espnet
from densekd.models.pspnet import PSPNet, pspnet_resnet101
from densekd.models.resnet import Bottleneck
from densekd.rewrite import to_inplace


class PlainABN(ABN):
    """The same function made of torch's parts: the leaky ReLU keeps its input or, in place, its result."""

    activation_in_place = True

    def forward(self, input: Tensor) -> Tensor:
        x = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight.abs() + self.eps, self.bias,
            self.training, self.momentum or 0.0, self.eps,
        )  # fmt: skip
        if self.activation == "leaky_relu":
            return F.leaky_relu(x, self.slope, inplace=self.activation_in_place)
        return x


class OutOfPlaceABN(PlainABN):
    activation_in_place = False


class LeakyBottleneck(Bottleneck):
    """Leaky ReLU after its first two norms; its sum keeps the ReLU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bn1.activation = self.bn2.activation = "leaky_relu"

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x))))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def with_norms(kind: type[ABN], network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, ABN):
            module.__class__ = kind
    return network


@dataclass
class Case:
    """A network and the ways to train it; the first is what the others are compared with.

    Attributes:
        time_size, memory_size: shapes of the images; time is taken on smaller ones where a step takes seconds.
    """

    build: Callable[[], nn.Module]
    arms: dict[str, Callable[[nn.Module], nn.Module]]
    time_size: tuple[int, int, int, int]
    memory_size: tuple[int, int, int, int]


def as_it_is(network: nn.Module) -> nn.Module:
    return network


FOREIGN = {"plain": as_it_is, "recomputed": to_inplace}
PLAIN = partial(with_norms, PlainABN)
CASES = {
    "pspnet_r101_leaky": Case(
        lambda: PSPNet(LeakyBottleneck, (3, 4, 23, 3), num_classes=19),
        {
            "plain": PLAIN,
            "plain, activation out of place": partial(with_norms, OutOfPlaceABN),
            "in-place ABN": as_it_is,
            "recomputed": lambda network: to_inplace(PLAIN(network)),
        },
        (2, 3, 96, 96),
        (2, 3, 192, 192),
    ),
    "pspnet_r101": Case(
        lambda: pspnet_resnet101(19),
        {"plain": PLAIN, "recomputed": to_inplace},
        (2, 3, 96, 96),
        (2, 3, 192, 192),
    ),
    "espnet": Case(lambda: espnet(19), FOREIGN, (2, 3, 192, 192), (2, 3, 256, 256)),
    "torchvision resnet50": Case(
        lambda: torchvision.models.resnet50(), FOREIGN, (4, 3, 128, 128), (2, 3, 224, 224)
    ),
    "timm mobilenetv2_100": Case(
        lambda: timm.create_model("mobilenetv2_100"), FOREIGN, (4, 3, 128, 128), (2, 3, 224, 224)
    ),
    "timm efficientnet_b0": Case(
        lambda: timm.create_model("efficientnet_b0"), FOREIGN, (4, 3, 128, 128), (2, 3, 224, 224)
    ),
}  # fmt: skip


def step(network: nn.Module, images: Tensor) -> None:
    out = network(images)
    outputs = out.values() if isinstance(out, dict) else [out]
    torch.stack([x.square().mean() for x in outputs]).sum().backward()


def build(case: str, arm: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return CASES[case].arms[arm](CASES[case].build()).to(device).train()


def memory(case: str, arm: str, size: tuple[int, ...], kind: str) -> dict[str, int | None]:
    """The bytes that one step adds to the network and its gradients."""
    device = torch.device(kind)
    network, images = build(case, arm, device), torch.rand(size, device=device)
    step(network, images[..., :64, :64])  # makes the gradients
    return measure.extra_memory(partial(step, network, images), device)


def kept(case: str, arm: str, size: tuple[int, ...]) -> int:
    """Bytes of the tensors that a forward leaves (CPU), its outputs among them."""
    network, images = build(case, arm, torch.device("cpu")), torch.rand(size)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        out = network(images)
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    del out
    return sum(e.nbytes() for e in events)


def measure_kept(case: str, *, dry: bool) -> dict[str, Any]:
    size = (2, 3, 64, 64) if dry else CASES[case].memory_size
    bytes_ = {arm: kept(case, arm, size) for arm in CASES[case].arms}
    over = {arm: found / bytes_["plain"] for arm, found in bytes_.items()}
    return {"size": size, "kept_bytes": bytes_, "over_plain": over}


def table_of_kept(found: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            f"{case}, {measure.times(result['size'])}" if arm == "plain" else "",
            arm,
            f"{bytes_ / 2**20:.0f}",
            f"{result['over_plain'][arm]:.3f}",
        ]
        for case, result in found.items()
        for arm, bytes_ in result["kept_bytes"].items()
    ]
    return measure.table(["network", "way", "kept MiB", "over plain"], rows)


def measure_case(
    case: str, device: torch.device, rounds: measure.Rounds, *, dry: bool
) -> dict[str, Any]:
    small = (2, 3, 64, 64)
    time_size = small if dry else CASES[case].time_size
    memory_size = small if dry else CASES[case].memory_size
    images = torch.rand(time_size, device=device)
    calls = {arm: partial(step, build(case, arm, device), images) for arm in CASES[case].arms}
    seconds = rounds.seconds(calls, device)
    del calls
    extra = {
        arm: measure.in_fresh_process(memory, case, arm, memory_size, device.type)
        for arm in CASES[case].arms
    }
    return {
        "time_size": time_size,
        "memory_size": memory_size,
        "seconds": {arm: measure.spread(found) for arm, found in seconds.items()},
        "time_over_plain": {
            arm: measure.ratio(found, seconds["plain"]) for arm, found in seconds.items()
        },
        "extra_bytes": extra,
        "memory_over_plain": {
            arm: found["tensors"] / extra["plain"]["tensors"] for arm, found in extra.items()
        },
        "raw_seconds": seconds,
    }


def as_table(found: dict[str, dict[str, Any]]) -> str:
    head = [
        "network",
        "way",
        "tensors MiB",
        "over plain",
        "of the process MiB",
        "s",
        "time over plain",
    ]
    rows = []
    for case, result in found.items():
        for arm, seconds in result["seconds"].items():
            bytes_, time = result["extra_bytes"][arm], result["time_over_plain"][arm]
            process = "–" if bytes_["process"] is None else f"{bytes_['process'] / 2**20:.0f}"
            first = arm == "plain"
            rows.append(
                [
                    f"{case}, {measure.times(result['memory_size'])}" if first else "", arm,
                    f"{bytes_['tensors'] / 2**20:.0f}", f"{result['memory_over_plain'][arm]:.3f}", process,
                    f"{seconds['median']:.3f}",
                    "1" if first else measure.with_interval(time),
                ]
            )  # fmt: skip
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("norms", __doc__, pairs=10)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--kept", action="store_true", help="only what a forward keeps (CPU)")
    args = parser.parse_args(arguments)
    device = measure.pick("cpu" if args.kept else args.device, args.clock)
    name = "norms-kept" if args.kept else "norms"
    path, rounds = measure.begin(args, name)
    if args.kept:
        found = {case: measure_kept(case, dry=args.dry) for case in args.case}
        return measure.finish(name, path, device, None, table_of_kept(found), cases=found)
    found = {case: measure_case(case, device, rounds, dry=args.dry) for case in args.case}
    return measure.finish(name, path, device, rounds, as_table(found), cases=found)


if __name__ == "__main__":
    raise SystemExit(main())
