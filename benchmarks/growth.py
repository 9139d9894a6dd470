"""How time and memory grow with pixels, classes, nodes and batch: exponents fitted to each.

    python -m benchmarks.growth [--subject NAME ...] [--pairs 5] [--clock cpu] [--dry] [--output FILE]

Each subject is a public function of densekd on random tensors, with backward where training uses one. Along an axis the
other sizes stay. Memory is the peak of the tensors that a call makes, without its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.cases import CASES, make_case, make_step
from benchmarks.pair_wise import exponent
from densekd.distill.discriminator import Discriminator, DiscriminatorLoss
from densekd.distill.distiller import Distiller
from densekd.engine.launch import keep_freed_memory
from densekd.losses import (
    cross_entropy,
    feature_mimic,
    ohem_cross_entropy,
    pair_wise,
    pixel_wise,
    virtual_normal,
)
from densekd.metrics import ConfusionMatrix
from densekd.ops.argmax import argmax_map

Call = Callable[[], Any]
STRIDE = 8  # the stride of a network's maps


@dataclass(frozen=True)
class Size:
    """The sizes of a measurement: images of side × side pixels, or maps of `nodes` nodes."""

    side: int = 256
    classes: int = 19
    nodes: int = 4096
    batch: int = 1

    @property
    def map(self) -> tuple[int, int]:
        return self.side // STRIDE, self.side // STRIDE


@dataclass(frozen=True)
class Subject:
    """A function whose cost is measured at several sizes.

    Attributes:
        make: size and device -> the call that is measured; it makes the call's inputs.
        axes: name of a size -> its values; ``side`` is reported as pixels.
        base: the sizes that stay.
        quadratic: axis -> the reason why the operation itself costs time with the square of the axis.
        quadratic_memory: whether it also costs memory so.
    """

    make: Callable[[Size, torch.device], Call]
    axes: Mapping[str, tuple[int, ...]]
    base: Size = field(default_factory=Size)
    quadratic: Mapping[str, str] = field(default_factory=dict)
    quadratic_memory: bool = False


# --- what is measured -----------------------------------------------------------------------------------------------


def _random(device: torch.device, *shape: int, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device).requires_grad_(grad)


def _labels(device: torch.device, classes: int, *shape: int) -> Tensor:
    """Blocks of one class, as in label maps."""
    coarse = torch.randint(0, classes, (shape[0], 1, 8, 8), generator=torch.Generator().manual_seed(0))  # fmt: skip
    maps = torch.nn.functional.interpolate(coarse.float(), shape[1:], mode="nearest")
    return maps[:, 0].long().to(device)


def _trained(loss: Callable[[], Tensor], *leaves: Tensor) -> Call:
    """Forward and backward."""

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return call


def _supervised(loss: Callable[..., Tensor], size: Size, device: torch.device) -> Call:
    logits = _random(device, size.batch, size.classes, *size.map, grad=True)
    target = _labels(device, size.classes, size.batch, size.side, size.side)
    return _trained(lambda: loss(logits, target), logits)


def _pixel_wise(size: Size, device: torch.device) -> Call:
    student = _random(device, size.batch, size.classes, *size.map, grad=True)
    teacher = _random(device, size.batch, size.classes, *size.map)
    return _trained(lambda: pixel_wise(student, teacher), student)


def _pair_wise(size: Size, device: torch.device, **options: Any) -> Call:
    """Each node is a pixel; their number is a power of two."""
    height = 2 ** ((size.nodes.bit_length() - 1) // 2)
    grid = height, size.nodes // height
    student = _random(device, size.batch, 64, *grid, grad=True)
    teacher = _random(device, size.batch, 64, *grid)
    return _trained(lambda: pair_wise(student, teacher, granularity=1, **options), student)


def _feature_mimic(size: Size, device: torch.device) -> Call:
    student = _random(device, size.batch, 256, 1, size.nodes, grad=True)
    teacher = _random(device, size.batch, 256, 1, size.nodes)
    weight = _random(device, size.batch, 1, 1, size.nodes).sigmoid()
    return _trained(lambda: feature_mimic(student, teacher, weight=weight), student)


def _virtual_normal(size: Size, device: torch.device) -> Call:
    shape = size.batch, 1, size.side, size.side
    prediction = (_random(device, *shape).abs() + 1).requires_grad_()
    target = _random(device, *shape).abs() + 1
    camera = torch.tensor([size.side, size.side, size.side / 2, size.side / 2], device=device)
    cameras = camera.float().repeat(size.batch, 1)
    generator = torch.Generator(device).manual_seed(0)
    return _trained(
        lambda: virtual_normal(prediction, target, cameras, generator=generator), prediction
    )


def _discriminator(size: Size, device: torch.device) -> Call:
    """Its own phase on maps of the image's stride 8."""
    torch.manual_seed(0)
    loss = DiscriminatorLoss(Discriminator(size.classes, channels=16)).to(device)
    images = _random(device, size.batch, 3, *size.map)
    teacher = _random(device, size.batch, size.classes, *size.map)
    student = _random(device, size.batch, size.classes, *size.map)

    def call() -> None:
        loss.zero_grad(set_to_none=True)
        sum(loss(images, teacher, student).values(), torch.zeros((), device=device)).backward()

    return call


def _evaluation(size: Size, device: torch.device) -> Call:
    """From scores at stride 8 to counts at full size. The scores have regions, as a network's have."""
    scores = 12 * torch.nn.functional.one_hot(
        _labels(device, size.classes, size.batch, *size.map), size.classes
    ).permute(0, 3, 1, 2).contiguous()  # fmt: skip
    scores = scores + _random(device, *scores.shape)
    target = _labels(device, size.classes, size.batch, size.side, size.side)
    matrix = ConfusionMatrix(size.classes, device=device)
    return lambda: matrix.update(argmax_map(scores, target.shape[-2:]), target)


def _confusion(size: Size, device: torch.device) -> Call:
    target = _labels(device, size.classes, size.batch, size.side, size.side)
    kind = torch.uint8 if size.classes <= 255 else torch.int16
    guess = target.roll(3, dims=-1).to(kind)
    matrix = ConfusionMatrix(size.classes, device=device)
    return lambda: matrix.update(guess, target)


def _step(terms: str, size: Size, device: torch.device, *, small: bool = False) -> Call:
    """A step of ESPNet-C: alone, with Pi + Pa from ESPNet, or with Pi + Pa + Ho."""
    config, full, batch = make_case(
        CASES["espnet_c_from_espnet"], device, size=(size.batch, size.side, size.side), dry=small
    )
    if terms == "student":
        distiller = Distiller(full.student, full.task)
    elif terms == "pi_pa":
        distiller = Distiller(full.student, full.task, teacher=full.teacher, terms=full.terms)
    else:
        distiller = full
    step = make_step(config, distiller, device)
    return lambda: step([batch], 0)


SIDES = (128, 256, 512)
CLASSES = (19, 150, 1000)
BATCHES = (1, 2, 4, 8)
NODES = (256, 1024, 4096, 16384)
ROWS = (256, 1024, 4096, 8192)
_ROWS = "each node's affinities pass through a function of their own: every pair is made, a few rows at a time"
_COUNTS = "the matrix itself has a count for each pair of classes"
_ATTENTION = "self-attention compares every place of its maps with every other"
SUBJECTS: dict[str, Subject] = {
    "cross-entropy": Subject(
        partial(_supervised, cross_entropy),
        {"side": SIDES, "classes": CLASSES, "batch": BATCHES},
    ),
    "OHEM": Subject(
        partial(_supervised, ohem_cross_entropy),
        {"side": SIDES, "classes": CLASSES, "batch": BATCHES},
    ),
    "pixel-wise": Subject(
        _pixel_wise,
        {"side": (256, 512, 1024), "classes": CLASSES, "batch": BATCHES},
        Size(side=512),
    ),
    "pair-wise": Subject(_pair_wise, {"nodes": NODES, "batch": BATCHES}),
    "pair-wise, window of 9": Subject(partial(_pair_wise, connection_range=9), {"nodes": NODES}),
    "pair-wise, sigmoid": Subject(
        partial(_pair_wise, affinity="sigmoid"), {"nodes": ROWS}, quadratic={"nodes": _ROWS}
    ),
    "pair-wise, softmax": Subject(
        partial(_pair_wise, affinity="softmax"), {"nodes": ROWS}, quadratic={"nodes": _ROWS}
    ),
    "feature mimic": Subject(_feature_mimic, {"nodes": NODES, "batch": BATCHES}),
    "virtual normal": Subject(_virtual_normal, {"side": SIDES, "batch": BATCHES}),
    "discriminator": Subject(
        _discriminator,
        {"side": (256, 512, 1024, 2048), "classes": CLASSES, "batch": BATCHES},
        Size(side=512),
        quadratic={"side": _ATTENTION},
        quadratic_memory=True,
    ),
    "evaluation": Subject(
        _evaluation, {"side": (256, 512, 1024), "classes": CLASSES, "batch": BATCHES}, Size(side=512)
    ),
    "confusion matrix": Subject(
        _confusion,
        {"side": (256, 512, 1024), "classes": CLASSES, "batch": BATCHES},
        Size(side=512),
        quadratic={"classes": _COUNTS},
        quadratic_memory=True,
    ),
    "student's step": Subject(partial(_step, "student"), {"side": SIDES, "batch": BATCHES}),
    "step with Pi + Pa": Subject(partial(_step, "pi_pa"), {"side": SIDES, "batch": BATCHES}),
    "step with Pi + Pa + Ho": Subject(
        partial(_step, "pi_pa_ho"),
        {"side": SIDES, "batch": BATCHES},
        quadratic={"side": _ATTENTION},
        quadratic_memory=True,
    ),
}  # fmt: skip


# --- how ------------------------------------------------------------------------------------------------------------


def extra_bytes(call: Call, device: torch.device) -> int:
    """Bytes of the tensors that a call makes, at their peak."""
    call()  # what only the first call makes: optimizer state, gradients, counts
    if device.type != "cuda":
        return measure.tensor_peak(call)
    before = torch.cuda.memory_allocated(device)
    peak = measure.peak_memory(call, device)
    assert peak is not None
    return peak - before


def along(subject: Subject, axis: str, value: int) -> Size:
    return replace(subject.base, **{axis: value})


def measure_axis(
    subject: Subject, axis: str, values: tuple[int, ...], device: torch.device, rounds: measure.Rounds
) -> dict[str, Any]:  # fmt: skip
    """Seconds and bytes at each value of an axis, and the powers fitted to them.

    Of time a power is fitted in each round and the median taken, as for a ratio.
    """
    calls = {value: subject.make(along(subject, axis, value), device) for value in values}
    # The square of the side: what grows is the number of pixels.
    sizes = {value: value**2 if axis == "side" else value for value in values}
    seconds = rounds.seconds({str(v): call for v, call in calls.items()}, device)
    by_round = [[seconds[str(v)][i] for v in values] for i in range(rounds.pairs)]
    memory = {value: extra_bytes(call, device) for value, call in calls.items()}
    steps = list(sizes.values())
    powers = [exponent(steps, values) for values in by_round]
    last = [exponent(steps[-2:], values[-2:]) for values in by_round]
    bytes_ = list(memory.values())
    return {
        "sizes": steps,
        "seconds": {str(sizes[v]): measure.spread(seconds[str(v)]) for v in values},
        "bytes": {str(sizes[v]): memory[v] for v in values},
        "time_exponent": measure.spread([p for p in powers if p is not None]),
        "time_exponent_of_last_two": measure.spread([p for p in last if p is not None]),
        "memory_exponent": exponent(steps, bytes_),
        "memory_exponent_of_last_two": exponent(steps[-2:], bytes_[-2:]),
        "raw_seconds": {str(sizes[v]): seconds[str(v)] for v in values},
    }


# Exponents from which growth is no longer called linear. Bytes are counted; times are noisy, and a call that outgrows
# a cache slows for a while, so the two largest sizes alone are given more room than the fit to all.
TIME_LIMIT, LAST_TIME_LIMIT, MEMORY_LIMIT = 1.1, 1.25, 1.05


def verdict(found: Mapping[str, Any], why: str | None, quadratic_memory: bool) -> str:
    """Linear (or less), quadratic by nature, or a miss; of memory the last two sizes decide, past all constants."""
    last = found["time_exponent_of_last_two"]["interval"][0] > LAST_TIME_LIMIT
    grown = {
        "time": last or found["time_exponent"]["interval"][0] > TIME_LIMIT,
        "memory": found["memory_exponent_of_last_two"] > MEMORY_LIMIT,
    }
    allowed = {"time": why is not None, "memory": why is not None and quadratic_memory}
    missed = [name for name, above in grown.items() if above and not allowed[name]]
    if missed:
        return f"MISSED: {' and '.join(missed)} more than linear"
    return "quadratic by nature" if any(grown.values()) else "linear"


def measure_subject(
    subject: Subject, device: torch.device, rounds: measure.Rounds
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axis, values in subject.axes.items():
        one = measure_axis(subject, axis, values, device, rounds)
        why = subject.quadratic.get(axis)
        base = {k: v for k, v in vars(subject.base).items() if k != axis}
        name = "pixels" if axis == "side" else axis
        found[name] = {
            **one,
            "others": base,
            "verdict": verdict(one, why, subject.quadratic_memory),
            "why": why,
        }
    return found


def small(subject: Subject) -> Subject:
    """Two small sizes an axis."""
    few = {"side": (64, 128), "classes": (19, 38), "nodes": (256, 1024), "batch": (1, 2)}
    make = subject.make
    if isinstance(make, partial) and make.func is _step:
        make = partial(make, small=True)
    return replace(
        subject,
        make=make,
        axes={axis: few[axis] for axis in subject.axes},
        base=replace(subject.base, side=64),
    )


def as_table(subjects: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["subject", "against", "from – to", "s", "time ∝", "of the last two"]
    head += ["MiB", "memory ∝", "of the last two", "growth"]
    rows = []
    for name, axes in subjects.items():
        for axis, found in axes.items():
            first, last = (str(found["sizes"][i]) for i in (0, -1))
            s, size = found["seconds"], found["bytes"]
            rows.append(
                [
                    name, axis, f"{first} – {last}",
                    f"{s[first]['median']:.4f} – {s[last]['median']:.4f}",
                    measure.with_interval(found["time_exponent"], 2),
                    f"{found['time_exponent_of_last_two']['median']:.2f}",
                    f"{size[first] / 2**20:.2f} – {size[last] / 2**20:.2f}",
                    f"{found['memory_exponent']:.2f}", f"{found['memory_exponent_of_last_two']:.2f}",
                    found["verdict"],
                ]
            )  # fmt: skip
    return measure.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = measure.make_parser("growth", __doc__, pairs=6)
    parser.add_argument("--subject", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    args = parser.parse_args(arguments)
    device = measure.pick(args.device, args.clock)
    path, rounds = measure.begin(args, "growth")
    if device.type == "cpu":
        keep_freed_memory()

    def measured(name: str) -> dict[str, Any]:
        subject = small(SUBJECTS[name]) if args.dry else SUBJECTS[name]
        return measure_subject(subject, device, rounds)

    found = measure.one_by_one(args.subject, measured)
    return measure.finish("growth", path, device, rounds, as_table(found), subjects=found)


if __name__ == "__main__":
    raise SystemExit(main())
