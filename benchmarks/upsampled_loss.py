"""The cost of losses of upsampled logits in bands of rows, against upsampling all logits first.

    python -m benchmarks.upsampled_loss [--case ade20k] [--loss kl] [--pairs 6] [--dry] [--output FILE]

Random logits at 1/8 of the labels, float32, forward and backward. "Plain" is the usual code: `interpolate`
(align_corners), then torch's own loss. Memory is what a call adds, measured in a fresh process for each form: as
tensors (PyTorch's profiler) and, on the CPU, as the process sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from densekd.losses import cross_entropy, ohem_cross_entropy, pixel_wise

# images, classes, height and width of the labels
CASES = {
    "ade20k": (8, 150, 512, 512),
    "cityscapes": (4, 19, 512, 1024),
    "camvid": (8, 11, 360, 480),
}
DRY = (2, 5, 256, 512)
STRIDE = 8
Inputs = tuple[Tensor, Tensor, Tensor]  # student's and teacher's logits, labels


def upsample(x: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(x, size=target.shape[1:], mode="bilinear", align_corners=True)


def plain_cross_entropy(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(upsample(student, target), target, ignore_index=255)


def plain_ohem(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """As `ohem_cross_entropy`: what has a probability below 0.7, and the hardest 1/16."""
    logits = upsample(student, target)
    loss = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
    loss = loss[target != 255]
    kth = loss.detach().topk(-(-loss.numel() // 16)).values[-1]
    return loss[(loss.detach().neg().exp() < 0.7) | (loss.detach() >= kth)].mean()


def plain_kl(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    log_s, log_t = (F.log_softmax(upsample(x, target), dim=1) for x in (student, teacher))
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True) / target.numel()


FORMS: dict[str, dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "cross_entropy": {"plain": plain_cross_entropy, "densekd": lambda s, t, y: cross_entropy(s, y)},
    "ohem": {"plain": plain_ohem, "densekd": lambda s, t, y: ohem_cross_entropy(s, y)},
    "kl": {"plain": plain_kl, "densekd": lambda s, t, y: pixel_wise(s, t, size=y.shape[1:])},
}


def make_inputs(shape: tuple[int, int, int, int], device: torch.device) -> Inputs:
    """Random maps and labels; an eighth of the labels, in blocks of 8 rows, is ignored."""
    n, k, height, width = shape
    g = torch.Generator().manual_seed(0)
    small = (n, k, height // STRIDE, width // STRIDE)
    student, teacher = (3 * torch.randn(small, generator=g) for _ in range(2))
    target = torch.randint(0, k, (n, height, width), generator=g)
    target[:, torch.arange(height) // 8 % 8 == 0] = 255
    return student.to(device).requires_grad_(), teacher.to(device), target.to(device)


def call(loss: str, form: str, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    value = FORMS[loss][form](*inputs)
    return value.detach(), torch.autograd.grad(value, inputs[0])[0]


def extra_memory(
    loss: str, form: str, shape: tuple[int, int, int, int], kind: str
) -> dict[str, int | None]:
    """The bytes that one call adds."""
    device = torch.device(kind)
    call(loss, form, make_inputs((1, 2, 16, 16), device))  # what the first call of all loads
    return measure.extra_memory(partial(call, loss, form, make_inputs(shape, device)), device)


def measure_loss(
    loss: str, shape: tuple[int, int, int, int], device: torch.device, rounds: measure.Rounds
) -> dict[str, Any]:
    memory = {
        form: measure.in_fresh_process(extra_memory, loss, form, shape, device.type)
        for form in FORMS[loss]
    }
    inputs = make_inputs(shape, device)
    (value, gradient), (plain_value, plain_gradient) = (
        call(loss, form, inputs) for form in ("densekd", "plain")
    )
    calls = {form: partial(call, loss, form, inputs) for form in FORMS[loss]}
    seconds = rounds.seconds(calls, device)
    return {
        "seconds": {form: measure.spread(found) for form, found in seconds.items()},
        "time_over_plain": measure.ratio(seconds["densekd"], seconds["plain"]),
        "extra_bytes": memory,
        "memory_over_plain": memory["densekd"]["tensors"] / memory["plain"]["tensors"],
        "relative_difference": {
            "value": (value / plain_value - 1).abs().item(),
            "gradient": ((gradient - plain_gradient).norm() / plain_gradient.norm()).item(),
        },
        "raw_seconds": seconds,
    }


def as_table(found: dict[str, dict[str, Any]]) -> str:
    head = ["case", "loss", "plain s", "densekd s", "time over plain", "plain MiB", "densekd MiB"]
    head += ["memory over plain", "of the process, MiB"]
    rows = []
    for name, case in found.items():
        for loss, f in case["losses"].items():
            time, (plain, own) = f["time_over_plain"], (f["extra_bytes"][k] for k in f["seconds"])
            process = "–"
            if plain["process"] is not None:
                process = f"{plain['process'] / 2**20:.0f} / {own['process'] / 2**20:.0f}"
            rows.append(
                [
                    f"{name} {measure.times(case['shape'])}", loss,
                    *(f"{s['median']:.3f}" for s in f["seconds"].values()),
                    measure.with_interval(time),
                    *(f"{m['tensors'] / 2**20:.0f}" for m in (plain, own)),
                    f"{f['memory_over_plain']:.3f}", process,
                ]
            )  # fmt: skip
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("upsampled_loss", __doc__, pairs=6)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--loss", nargs="+", choices=list(FORMS), default=list(FORMS))
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, "upsampled_loss")
    cases = {"dry": DRY} if args.dry else {name: CASES[name] for name in args.case}
    found: dict[str, dict[str, Any]] = {}
    for name, shape in cases.items():
        losses = {loss: measure_loss(loss, shape, device, rounds) for loss in args.loss}
        found[name] = {"shape": shape, "stride": STRIDE, "losses": losses}
    return measure.finish("upsampled_loss", path, device, rounds, as_table(found), cases=found)


if __name__ == "__main__":
    raise SystemExit(main())
