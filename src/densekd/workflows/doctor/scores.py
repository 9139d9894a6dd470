"""What teacher and student score on a few validation images, beside a constant guess and beside each other."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densekd.build.data import VIEWS, build_eval_loader, build_views
from densekd.build.run import Run
from densekd.build.settings import naming_settings
from densekd.distill.teacher import Teacher
from densekd.engine.evaluate import evaluate
from densekd.models.taps import Taps
from densekd.ops.names import first_few
from densekd.tasks import Task
from densekd.types import Batch, InputSpec
from densekd.workflows.doctor.finding import Finding
from densekd.workflows.doctor.networks import AREA, other_inputs
from densekd.workflows.verdict import NOTHING, REMEDY, gained, is_above

LITTLE = 0.2  # the part of the way from a constant guess to a perfect score below which a network knows little
KNOWS = 0.4  # and from which its classes have a meaning, under whatever names
CLEARLY = 0.05  # another input that scores by so much more is what the weights were trained with
BUDGET = 30.0  # seconds for trying other inputs


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


@contextmanager
def seeing(network: Taps, spec: InputSpec) -> Iterator[None]:
    """Within it the tapped network normalises its images otherwise."""
    before = network.input_spec
    network.set_input(spec)
    try:
        yield
    finally:
        network.set_input(before)


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


def called(section: str) -> str:
    """``"student"``, ``"teacher"`` or ``"teacher NAME"``: what the network of a section is called."""
    return "student" if section == "model" else section.replace("teachers.", "teacher ")


def hearsay(section: str) -> str:
    """What to look at where a network knows little."""
    classes = "" if section == "model" else f" and {section}.classes"
    return (
        f"Look at {section}.weights, {section}.input (mean, std, order, range){classes}, and whether it was trained on "
        "images of this kind and size"
    )


def score_finding(
    section: str, task: Task, scores: Mapping[str, Any], constant: Mapping[str, Any], images: int
) -> Finding:
    """A trained network's score beside that of a constant guess on the same images.

    Args:
        section: ``"teacher"``, ``"teachers.NAME"`` or ``"model"``.
    """
    quick, main = task.quick_metric, task.metric_names[0]
    smaller = quick in task.smaller_is_better
    value, guess = value_of(scores, quick), value_of(constant, quick)
    names = dict.fromkeys([quick, main])
    shown = ", ".join(
        f"{name} {value_of(scores, name):.3f} (constant guess {value_of(constant, name):.3f})"
        for name in names
    )
    what = f"{called(section)} on {images} validation images: {shown}"
    numbers = {
        name: {"score": value_of(scores, name), "constant": value_of(constant, name)}
        for name in names
    }
    if value != value:
        return Finding("note", AREA, f"{what}: no label among them counts", numbers=numbers)
    part = gained(value, guess, smaller_is_better=smaller)
    setting, advice = f"{section}.weights", hearsay(section)
    if part < NOTHING:
        what += ": no better than an answer that looks at no image"
        return Finding("error", AREA, what, advice, setting, numbers)
    if part < LITTLE:
        what += ": little better than an answer that looks at no image"
        return Finding("warning", AREA, what, advice, setting, numbers)
    return Finding("ok", AREA, what, setting=setting, numbers=numbers)


def in_pytorch(teacher: Teacher) -> Teacher:
    """The teacher without its program, which takes images of one size and has the input built in."""
    other = copy.copy(teacher)
    other.program = None
    return other


def try_inputs(
    teacher: Teacher,
    run: Run,
    batches: Sequence[Batch],
    seconds: float,
    guess: float,
    section: str = "teacher",
) -> list[Finding]:
    """Whether the teacher scores clearly better with another normalisation than the recipe's.

    Args:
        seconds: that an image takes, so that trying stays within `BUDGET`.
        guess: what a constant guess scores; an input that is no better than that is none.
    """
    network, task = teacher.network, run.task
    if network.input_spec is None or run.config.every_teacher[section].compile:
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
    part = gained(known[best], guess, smaller_is_better=sign < 0)
    if sign * (known[best] - own) > CLEARLY and part > LITTLE:
        what = (
            f"the {called(section)} scores {quick} {known[best]:.3f} with {best}, and {own:.3f} as the recipe has it: "
            "it was probably trained with the other input"
        )
        advice = f"Set {section}.input.order, range, mean and std so, where they do not say so yet"
        return [Finding("warning", AREA, what, advice, f"{section}.input", numbers)]
    what = f"{called(section)}: none of {len(inputs)} other normalisations scores better ({quick})"
    return [Finding("ok", AREA, what, setting=f"{section}.input", numbers=numbers)]


def class_order_findings(
    classes: Sequence[str], confusion: Tensor | None, section: str = "teacher"
) -> list[Finding]:
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
    if renamed - right < 0.15 or gained(renamed, guess, smaller_is_better=False) < KNOWS:
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
        f"the classes of the {called(section)} seem to stand in another order: {right:.0%} of the pixels are right, "
        f"and {renamed:.0%} would be under other names (what it calls {first_few(wrong, 4)})"
    )
    advice = f"Say which of its indices is which class in {section}.classes, or mend the class list of the data"
    numbers = {"right": right, "renamed": renamed}
    return [Finding("error", AREA, what, advice, f"{section}.classes", numbers)]


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
