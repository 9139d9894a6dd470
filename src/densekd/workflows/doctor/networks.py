"""Student and teacher: where their weights come from, what they see, and what they score."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densekd.build.data import VIEWS, build_eval_loader, build_views
from densekd.build.dry_run import example_batch
from densekd.build.run import Run
from densekd.build.settings import naming_settings
from densekd.config.schema import Model
from densekd.distill.teacher import Teacher
from densekd.engine.evaluate import evaluate
from densekd.models.taps import Taps
from densekd.ops.names import first_few
from densekd.profiling import count_parameters
from densekd.tasks import Task
from densekd.types import IMAGENET_MEAN, IMAGENET_STD, Batch, InputSpec
from densekd.workflows.doctor.finding import Finding
from densekd.workflows.verdict import NOTHING, REMEDY, gained, is_above

AREA = "networks"
LITTLE = 0.2  # the part of the way from a constant guess to a perfect score below which a network knows little
FAR_OFF = 4.0  # normalised images further from mean 0 or with a larger deviation than this are no network's input
CLEARLY = 0.05  # another input that scores by so much more is what the weights were trained with
BUDGET = 30.0  # seconds for trying other inputs
HEARSAY = (
    "Look at teacher.weights, teacher.input (mean, std, order, range) and teacher.classes, and whether it was trained "
    "on images of this kind and size"
)


class Few:
    """A reader of a few samples of another, spread evenly over it."""

    def __init__(self, reader: Any, count: int) -> None:
        self.reader = reader
        places = np.linspace(0, len(reader) - 1, min(count, len(reader))).round()
        self.indices = sorted(set(places.astype(int).tolist()))

    def __len__(self) -> int:
        return len(self.indices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)

    def name(self, index: int) -> str:
        return self.reader.name(self.indices[index])

    def read(self, index: int) -> Any:
        return self.reader.read(self.indices[index])


# --- weights --------------------------------------------------------------------------------------------------------


def weights_finding(
    where: str, model: Model, network: nn.Module, rebuilt: Callable[[], nn.Module]
) -> Finding:
    """How many parameters are trained and how many start at random.

    Weights of a file are loaded whole or not at all. Without a file, the network is built again from another seed:
    what is the same in both and is no constant was brought by the builder (a pretrained backbone).

    Args:
        where: ``"model"`` or ``"teacher"``.
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
    advice = "A random part teaches noise: give the teacher's own --teacher.weights FILE"
    return Finding("error" if nothing else "warning", AREA, what, advice, setting, numbers)


# --- input ----------------------------------------------------------------------------------------------------------


def input_finding(where: str, spec: InputSpec, images: Tensor) -> Finding:
    """What a network sees of a batch, and whether that is near mean 0 and deviation 1.

    Args:
        images: (N, C, H, W) in [0, 1].
    """
    seen = spec.normalize(images.float())
    mean, deviation = float(seen.mean()), float(seen.std())
    shown = (
        f"{spec.order}, 0 to {spec.range:g}, mean {_short(spec.mean)}, std {_short(spec.std)}"
        if spec.channels == 3
        else f"0 to {spec.range:g}, mean {_short(spec.mean)}, std {_short(spec.std)}"
    )
    what = f"{where} sees {shown}: a batch then has mean {mean:.2f} and std {deviation:.2f}"
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
    found = {
        "range 1, mean 0, std 1": replace(spec, range=1.0, mean=zeros, std=ones),
        "range 255, mean 0, std 1": replace(spec, range=255.0, mean=zeros, std=ones),
    }
    if spec.channels == 3:
        other = "bgr" if spec.order == "rgb" else "rgb"
        swapped = replace(spec, order=other, mean=spec.mean[::-1], std=spec.std[::-1])
        imagenet = replace(spec, order="rgb", range=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        bgr = replace(imagenet, order="bgr", range=255.0, mean=scaled[0][::-1], std=scaled[1][::-1])
        found |= {
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


@contextmanager
def seeing(network: Taps, spec: InputSpec) -> Any:
    """Within it the tapped network normalises its images otherwise."""
    before = network.input_spec
    network.input_spec = spec
    try:
        yield
    finally:
        network.input_spec = before


# --- scores ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """What a network scored on a few validation images.

    Attributes:
        scores: of the task's metric.
        seconds: the time of an image.
        confusion: (K, K) counts of (true, predicted) class; None where the task has none.
    """

    scores: dict[str, Any]
    seconds: float
    confusion: Tensor | None


def validation_batches(run: Run, count: int) -> list[Batch]:
    """Some validation images, spread over the split."""
    data = replace(run.config.data, workers=0)
    config = replace(run.config, data=data)
    return list(build_eval_loader(config, Few(run.val_set, count), run.spec, run.process))


def score(
    network: nn.Module, run: Run, batches: Sequence[Batch], amp: torch.dtype | None = None
) -> Scored:
    """The scores of a tapped network under the recipe's own way of evaluating."""
    metric = run.task.metric(run.process.device)
    begin = time.perf_counter()
    with naming_settings(VIEWS):
        scores = evaluate(
            network,
            batches,
            run.task,
            device=run.process.device,
            views=build_views(run.config.evaluate),
            amp=amp,
            metric=metric,
        )
    seconds = (time.perf_counter() - begin) / max(1, sum(len(batch) for batch in batches))
    confusion = getattr(metric, "confusion", None)
    return Scored(scores, seconds, None if confusion is None else confusion.counts.cpu())


def value_of(scores: Mapping[str, Any], key: str) -> float:
    """A score; NaN where it does not exist."""
    value = scores.get(key)
    return float("nan") if value is None else float(value)


def score_finding(
    who: str, task: Task, scores: Mapping[str, Any], constant: Mapping[str, Any], images: int
) -> Finding:
    """A trained network's score beside that of a constant guess on the same images.

    Args:
        who: ``"teacher"`` or ``"student"``.
    """
    quick, main = task.quick_metric, task.metric_names[0]
    smaller = quick in task.smaller_is_better
    value, guess = value_of(scores, quick), value_of(constant, quick)
    names = dict.fromkeys([quick, main])
    shown = ", ".join(
        f"{name} {value_of(scores, name):.3f} (constant guess {value_of(constant, name):.3f})"
        for name in names
    )
    what = f"{who} on {images} validation images: {shown}"
    numbers = {
        name: {"score": value_of(scores, name), "constant": value_of(constant, name)}
        for name in names
    }
    if value != value:
        return Finding("note", AREA, f"{what}: no label among them counts", numbers=numbers)
    part = gained(value, guess, smaller_is_better=smaller)
    setting = "teacher.weights" if who == "teacher" else "model.weights"
    advice = HEARSAY if who == "teacher" else HEARSAY.replace("teacher", "model")
    if part < NOTHING:
        what += ": no better than an answer that looks at no image"
        return Finding("error", AREA, what, advice, setting, numbers)
    if part < LITTLE:
        what += ": little better than an answer that looks at no image"
        return Finding("warning", AREA, what, advice, setting, numbers)
    return Finding("ok", AREA, what, setting=setting, numbers=numbers)


def try_inputs(
    teacher: Teacher, run: Run, batches: Sequence[Batch], seconds: float
) -> list[Finding]:
    """Whether the teacher scores clearly better with another normalisation than the recipe's.

    Args:
        seconds: that an image takes, so that trying stays within `BUDGET`.
    """
    network, task = teacher.network, run.task
    if network.input_spec is None or (run.config.teacher and run.config.teacher.compile):
        return []
    inputs = other_inputs(network.input_spec)
    few = max(1, min(len(batches), int(BUDGET / max(1e-9, (len(inputs) + 1) * seconds))))
    some = batches[:few]
    quick = task.quick_metric
    sign = -1 if quick in task.smaller_is_better else 1
    own = value_of(score(teacher, run, some).scores, quick)
    found: dict[str, float] = {}
    for name, spec in inputs.items():
        with seeing(network, spec):
            found[name] = value_of(score(teacher, run, some).scores, quick)
    known = {name: value for name, value in found.items() if value == value}
    if own != own or not known:
        return []
    best = max(known, key=lambda name: sign * known[name])
    numbers = {"own": own, **found}
    if sign * (known[best] - own) > CLEARLY:
        what = (
            f"the teacher scores {quick} {known[best]:.3f} with {best}, and {own:.3f} as the recipe has it: it was "
            "probably trained with the other input"
        )
        advice = "Set teacher.input.order, range, mean and std so"
        return [Finding("warning", AREA, what, advice, "teacher.input", numbers)]
    what = f"teacher: none of {len(inputs)} other normalisations scores better ({quick})"
    return [Finding("ok", AREA, what, setting="teacher.input", numbers=numbers)]


def class_order_findings(classes: Sequence[str], confusion: Tensor | None) -> list[Finding]:
    """Whether the teacher is right under other names: its classes stand in another order than the data's.

    Args:
        confusion: (K, K) counts, a row a true class.
    """
    if confusion is None or not int(confusion.sum()):
        return []
    counts = confusion.double()
    total = counts.sum()
    right = float(counts.diag().sum() / total)
    guess = float(counts.sum(1).max() / total)
    renamed = float(counts.amax(0).sum() / total)  # each predicted class under its likeliest name
    if renamed - right < 0.15 or renamed < guess + 0.1:
        return []
    wrong = [
        f"{classes[predicted]} is mostly {classes[int(column.argmax())]}"
        for predicted, column in enumerate(counts.T)
        if column.sum() > 0.005 * total
        and int(column.argmax()) != predicted
        and column.max() > 0.5 * column.sum()
    ]
    if not wrong:
        return []
    what = (
        f"the teacher's classes seem to stand in another order: {right:.0%} of the pixels are right, and {renamed:.0%} "
        f"would be under other names (what it calls {first_few(wrong, 4)})"
    )
    advice = "Say which of its indices is which class in teacher.classes, or mend the class list of the data"
    numbers = {"right": right, "renamed": renamed}
    return [Finding("error", AREA, what, advice, "teacher.classes", numbers)]


def lead_finding(
    task: Task, teacher: float, alone: Sequence[float], who: str = "the student"
) -> Finding:
    """Whether the teacher is clearly above the student that learned alone, by the task's main score."""
    main = task.metric_names[0]
    mean = sum(alone) / len(alone)
    what = f"teacher {main} {teacher:.3f}, {who} {mean:.3f}"
    numbers = {"teacher": teacher, "alone": list(alone)}
    if is_above(teacher, alone, smaller_is_better=main in task.smaller_is_better):
        return Finding("ok", AREA, f"{what}: the teacher is clearly above", numbers=numbers)
    what += ": the teacher is not clearly above"
    return Finding("warning", AREA, what, REMEDY, "teacher.weights", numbers)


# --- label spaces and sizes -----------------------------------------------------------------------------------------


def left_over_findings(
    classes: Sequence[str], groups: Sequence[Sequence[int]], left: float
) -> list[Finding]:
    """What `teacher.classes` leaves out.

    Args:
        groups: the teacher's indices of each class.
        left: mean probability of the teacher's classes that belong to none.
    """
    setting, findings = "teacher.classes", []
    empty = [name for name, group in zip(classes, groups, strict=True) if not group]
    if empty:
        what = f"the teacher knows no {first_few(empty)}: for these the labels alone speak, and the terms against them"
        findings.append(
            Finding("note", AREA, what, "distill.mask label leaves nothing out of them", setting)
        )
    what = f"{left:.1%} of the teacher's probability is on classes that belong to none of the student's"
    numbers = {"left_over": left}
    if left > 0.3:
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
