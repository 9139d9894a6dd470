"""Student and teacher: where their weights come from, what they see, and at which sizes they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from densekd.build.data import build_views
from densekd.build.dry_run import example_batch
from densekd.build.run import Run
from densekd.config.schema import Model
from densekd.models.taps import Taps
from densekd.ops.names import first_few
from densekd.profiling import count_parameters
from densekd.types import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from densekd.workflows.doctor.finding import Finding

AREA = "networks"
FAR_OFF = 4.0  # normalised images further from mean 0 or with a larger deviation than this are no network's input
MUCH_LEFT = (
    0.3  # of the teacher's probability that belongs to no class, from which there is a warning
)


# --- weights --------------------------------------------------------------------------------------------------------


def weights_finding(
    where: str, model: Model, network: nn.Module, rebuilt: Callable[[], nn.Module]
) -> Finding:
    """How many parameters are trained and how many start at random.

    Weights of a file are loaded whole or not at all. Without a file, the network is built again from another seed:
    what is the same in both and is no constant was brought by the builder (a pretrained backbone).

    Args:
        where: ``"model"``, ``"teacher"`` or ``"teachers.NAME"``.
        network: as it was built, before norms are folded.
        rebuilt: builds it again.
    """
    total = count_parameters(network)
    setting = f"{where}.weights"
    if model.weights is not None:
        tensors = len(network.state_dict())
        what = (
            f"{where} {model.name}: all {tensors} tensors ({total / 1e6:.3f} M parameters) are loaded from "
            f"{model.weights}; none stays random"
        )
        return Finding(
            "ok", AREA, what, setting=setting, numbers={"parameters": total, "random": 0}
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2**31 - 1)
        again = dict(rebuilt().named_parameters())
    random = {
        name: value.numel()
        for name, value in network.named_parameters()
        if name in again and not torch.equal(value.cpu(), again[name].cpu())
    }
    constant = sum(
        value.numel()
        for name, value in network.named_parameters()
        if name not in random and bool((value == value.flatten()[:1]).all())
    )
    count = sum(random.values())
    trained = total - count - constant
    numbers = {"parameters": total, "random": count, "trained": trained}
    nothing = trained < 0.01 * total  # a sine table or the like is no training
    if nothing:
        what = f"{where} {model.name}: no weights are loaded; all {total / 1e6:.3f} M parameters start at random"
    elif not count:
        what = f"{where} {model.name}: all {total / 1e6:.3f} M parameters come with the network; none is random"
    else:
        what = (
            f"{where} {model.name}: {trained / 1e6:.3f} of {total / 1e6:.3f} M parameters come with the network, and "
            f"{count / 1e6:.3f} M start at random ({first_few(list(random), 3)})"
        )
    if where == "model" or not count:
        return Finding("ok", AREA, what, setting=setting, numbers=numbers)
    advice = f"A random part teaches noise: give the teacher's own --{where}.weights FILE"
    return Finding("error" if nothing else "warning", AREA, what, advice, setting, numbers)


# --- input ----------------------------------------------------------------------------------------------------------


def input_finding(where: str, spec: InputSpec, images: Tensor) -> Finding:
    """What a network sees of a batch, and whether that is near mean 0 and deviation 1.

    Args:
        images: (N, C, H, W) in [0, 1].
    """
    seen = spec.normalize(images.float())
    mean, deviation = float(seen.mean()), float(seen.std(dim=(0, 2, 3)).mean())
    shown = (
        f"{spec.order}, 0 to {spec.range:g}, mean {_short(spec.mean)}, std {_short(spec.std)}"
        if spec.channels == 3
        else f"0 to {spec.range:g}, mean {_short(spec.mean)}, std {_short(spec.std)}"
    )
    what = f"{where} sees {shown}: a batch then has mean {mean:.2f} and std {deviation:.3g}"
    numbers = {"spec": spec.as_dict(), "mean": mean, "std": deviation}
    setting = f"{where}.input"
    if abs(mean) > FAR_OFF or deviation > FAR_OFF or deviation < 1 / (4 * FAR_OFF):
        advice = (
            f"Networks are trained on inputs near mean 0 and std 1: {where}.input.mean and {where}.input.std are in "
            f"the units of {where}.input.range ({spec.range:g})"
        )
        return Finding("warning", AREA, what, advice, setting, numbers)
    return Finding("ok", AREA, what, setting=setting, numbers=numbers)


def _short(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def other_inputs(spec: InputSpec) -> dict[str, InputSpec]:
    """What else the weights may have been trained with: settings as a recipe has them -> the input."""
    zeros, ones = (0.0,) * spec.channels, (1.0,) * spec.channels
    scaled = tuple(value * 255 for value in IMAGENET_MEAN), tuple(v * 255 for v in IMAGENET_STD)
    other_range = 1.0 if spec.range == 255.0 else 255.0
    found = {
        f"range {other_range:g} instead of {spec.range:g}": replace(spec, range=other_range),
        "range 1, mean 0, std 1": replace(spec, range=1.0, mean=zeros, std=ones),
        "range 255, mean 0, std 1": replace(spec, range=255.0, mean=zeros, std=ones),
    }
    if spec.channels == 3:
        other = "bgr" if spec.order == "rgb" else "rgb"
        swapped = replace(spec, order=other, mean=spec.mean[::-1], std=spec.std[::-1])
        imagenet = replace(spec, order="rgb", range=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        bgr = replace(imagenet, order="bgr", range=255.0, mean=scaled[0][::-1], std=scaled[1][::-1])
        found |= {
            f"order {other} instead of {spec.order}": replace(spec, order=other),
            f"order {other}, mean and std in that order": swapped,
            "order rgb, range 1, ImageNet's mean and std": imagenet,
            "order bgr, range 255, ImageNet's mean and std times 255 in that order": bgr,
        }
    different: dict[str, InputSpec] = {}
    for name, other_spec in found.items():
        if not any(_same(other_spec, known) for known in (spec, *different.values())):
            different[name] = other_spec
    return different


def _same(a: InputSpec, b: InputSpec) -> bool:
    """Whether two inputs show the network the same, up to rounding."""
    ramp = torch.linspace(0, 1, 3 * a.channels).view(3, a.channels, 1, 1)
    return torch.allclose(a.normalize(ramp), b.normalize(ramp), atol=1e-2)


# --- label spaces and sizes -----------------------------------------------------------------------------------------


def left_over_findings(
    classes: Sequence[str],
    groups: Sequence[Sequence[int]],
    left: float | None,
    section: str = "teacher",
) -> list[Finding]:
    """What `teacher.classes` leaves out.

    Args:
        groups: the teacher's indices of each class.
        left: mean probability of the teacher's classes that belong to none; None of a detector, whose classes are
            no distribution.
    """
    setting, findings = f"{section}.classes", []
    empty = [name for name, group in zip(classes, groups, strict=True) if not group]
    if empty:
        what = f"the teacher knows no {first_few(empty)}: for these the labels alone speak, and the terms against them"
        findings.append(
            Finding("note", AREA, what, "distill.mask label leaves nothing out of them", setting)
        )
    if left is None:
        return findings
    what = f"{left:.1%} of the teacher's probability is on classes that belong to none of the student's"
    numbers = {"left_over": left}
    if left > MUCH_LEFT:
        advice = "The rest is scaled up to 1, so the teacher seems surer than it is: give those classes a place"
        findings.append(Finding("warning", AREA, what, advice, setting, numbers))
    else:
        findings.append(Finding("ok", AREA, what, setting=setting, numbers=numbers))
    return findings


@torch.no_grad()
def evaluation_findings(run: Run, sizes: Sequence[tuple[int, int]]) -> list[Finding]:
    """Whether the student can be evaluated at the sizes of the validation images, tried on made-up ones."""
    config, task, device = run.config, run.task, run.process.device
    student = Taps(run.network, {}, run.spec).eval()
    views = build_views(config.evaluate)
    try:
        for height, width in sizes:
            batch = example_batch(task, config.model.in_channels, (height, width), device)
            try:
                task.predict(student, batch, views)
            except (ValueError, TypeError, RuntimeError) as error:
                what = f"images of {height}x{width} cannot be evaluated: {error}"
                advice = (
                    "Set evaluate.window to a size that the network takes (for example that of data.crop), or "
                    "evaluate.short_side"
                )
                return [Finding("error", AREA, what, advice, "evaluate.window")]
    finally:
        run.network.train()
    shown = first_few([f"{h}x{w}" for h, w in sizes])
    return [Finding("ok", AREA, f"evaluation runs at the sizes of the validation images: {shown}")]
