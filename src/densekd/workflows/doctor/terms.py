"""The distillation terms: what they compare, what they are worth, and how hard they pull beside the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.build.run import Run
from densekd.distill.distiller import Distiller
from densekd.distill.maps import TeacherMaps, compared_size
from densekd.distill.term import Term
from densekd.engine.step import Step, bare
from densekd.losses import PairWise, PixelWise
from densekd.losses.pair_wise.nodes import cell_of
from densekd.models.taps import evaluating
from densekd.profiling.step_time import LATE
from densekd.tasks import Task
from densekd.types import Batch, DenseOutput
from densekd.workflows.doctor.finding import Finding

AREA = "terms"
STRONG, WEAK = 100.0, 0.01  # a term's gradient over the task's
DEAD = 1e-6  # the same at weight 1: what is below is rounding
TASK, HOLISTIC = "task", "holistic"


# --- what is compared -----------------------------------------------------------------------------------------------


@torch.no_grad()
def compared(distiller: Distiller, batch: Batch) -> tuple[DenseOutput, TeacherMaps] | None:
    """The student's output and the teacher's maps of a batch, in eval mode; None without a teacher."""
    if distiller.source is None:
        return None
    with evaluating(distiller.student):
        output = distiller.student(batch.images)
    return output, distiller.source.maps(batch, distiller.task.mask(batch, distiller.mask))


def tap_findings(
    distiller: Distiller, output: DenseOutput, maps: TeacherMaps, size: tuple[int, int]
) -> list[Finding]:
    """What each term compares: shapes and strides of both sides, and whether a map says nothing.

    Args:
        size: (height, width) of the images.
    """
    findings = []
    for term in distiller.terms:
        own = term.student_maps(output, distiller.task)
        sides = (("student", term.student, own), ("teacher", term.teacher, maps.levels[term.name]))
        shown = "; ".join(
            f"{side} {source} {', '.join(_shape(x, size) for x in levels)}"
            for side, source, levels in sides
        )
        setting = f"distill.{term.name}"
        dull = [
            f"{side} {source}"
            for side, source, levels in sides
            if any(float(x.float().std()) == 0 for x in levels)
        ]
        if dull:
            what = f"{term.name}: {' and '.join(dull)} has one value everywhere, so it says nothing ({shown})"
            advice = "Tap another module (`densekd taps RECIPE`)"
            findings.append(Finding("error", AREA, what, advice, setting))
        else:
            findings.append(Finding("ok", AREA, f"{term.name}: {shown}", setting=setting))
    return findings


def _shape(x: Tensor, size: tuple[int, int]) -> str:
    stride = size[0] / x.shape[-2]
    return f"{x.shape[1]}×{x.shape[-2]}×{x.shape[-1]} (stride {stride:.3g})"


def node_findings(
    terms: Sequence[Term], student: Mapping[str, list[Tensor]], teacher: TeacherMaps
) -> list[Finding]:
    """Pair-wise terms that have a single node: its affinity with itself is always 1, so they are always 0.

    Args:
        student: term's name -> its maps of the student.
    """
    findings = []
    for term in terms:
        if not isinstance(term.loss, PairWise):
            continue
        pairs = list(zip(student[term.name], teacher.levels[term.name], strict=True))
        sizes = [torch.Size(compared_size(own, other)) for own, other in pairs]
        single = [
            f"{size[0]}×{size[1]}" for size in sizes if _is_one_node(term.loss.granularity, size)
        ]
        if not single:
            continue
        advice = "Lower its granularity (an integer is pixels of the map), or tap a finer map"
        setting = f"distill.{term.name}.granularity"
        if len(single) == len(sizes):
            what = (
                f"{term.name} has a single node (of a map of {single[0]}): its affinity with itself is always 1, so "
                "the term is always 0 and teaches nothing"
            )
            findings.append(Finding("error", AREA, what, advice, setting))
        else:
            what = (
                f"{term.name} has a single node, and so teaches nothing, at {len(single)} of {len(sizes)} "
                f"levels ({', '.join(single)})"
            )
            findings.append(Finding("note", AREA, what, advice, setting))
    return findings


def unweighted_findings(terms: Sequence[Term], task: Task) -> list[Finding]:
    """Pixel-wise terms without class weights beside a task that has them: the two disagree about rare classes."""
    own = getattr(getattr(task, "term", None), "class_weights", None)
    if own is None:
        return []
    advice = (
        "Rare classes may lose what the task's weights give them: try task.class_weights in the term too, or "
        "channel_wise (docs/choosing.md)"
    )
    return [
        Finding(
            "note",
            AREA,
            f"the task weighs its classes, and {term.name} counts every pixel alike",
            advice,
            f"distill.{term.name}.class_weights",
        )
        for term in terms
        if isinstance(term.loss, PixelWise)
        and term.loss.form == "softmax"
        and term.loss.class_weights is None
    ]


def _is_one_node(granularity: int | float, size: torch.Size) -> bool:
    height, width = cell_of(granularity, size)
    return height >= size[0] and width >= size[1]


# --- what the terms are worth ---------------------------------------------------------------------------------------


def gradients(step: Step, batch: Batch, *, fresh: bool) -> dict[str, tuple[float, float]]:
    """Each loss of the student's phase -> its weighted value, and its gradient's L2 norm over the student's network.

    Under ``"task"`` stands the sum of the supervised terms. Nothing is updated, except statistics of norms and what
    terms remember.

    Args:
        fresh: a forward pass for each loss, where a graph cannot be passed backwards twice (recomputed norms, a
            compiled network).
    """
    parameters = [p for p in bare(step.distiller.student).model.parameters() if p.requires_grad]
    step.distiller.student.train()

    def losses() -> dict[str, Tensor]:
        torch.manual_seed(0)
        with step._autocast():
            found, _ = step.distiller.student_phase(batch, LATE)
        task = [value for name, value in found.items() if name.startswith(f"{TASK}/")]
        others = {k: v for k, v in found.items() if not k.startswith(f"{TASK}/")}
        return {TASK: torch.stack([value.float() for value in task]).sum(), **others}

    values = losses()
    result = {}
    for name in list(values):
        value = losses()[name] if fresh else values[name]
        norm = 0.0
        if value.requires_grad:
            found = torch.autograd.grad(
                value, parameters, retain_graph=not fresh, allow_unused=True
            )
            norm = float(nn.utils.get_total_norm([g.float() for g in found if g is not None]))
        result[name] = (float(value.detach()), norm)
    return result


def gradient_findings(
    found: Mapping[str, tuple[float, float]], weights: Mapping[str, float]
) -> list[Finding]:
    """Each term's value and pull beside the task's; dead terms, and weights that are far off.

    Args:
        found: of `gradients`.
        weights: of `weights_of`; what is not in it is not judged.
    """
    value, task = found[TASK]
    findings = [Finding("ok", AREA, f"task: loss {value:.4g}, gradient norm {task:.4g}")]
    if not math.isfinite(value) or not math.isfinite(task):
        findings = [
            Finding(
                "error", AREA, f"task: loss {value}, gradient norm {task}: not finite", NOT_FINITE
            )
        ]
    elif task == 0:
        what = f"task: loss {value:.4g} and no gradient: the labels of this batch teach nothing"
        findings = [Finding("warning", AREA, what, "Are the labels those of the recipe's classes?")]
    for name, (value, norm) in found.items():
        short = name.removeprefix("distill/")
        if short in weights:
            findings.append(_pull(short, value, norm, task, weights[short]))
    return findings


NOT_FINITE = "Train without amp, and look at the weights and the input of both networks"


def _pull(name: str, value: float, norm: float, task: float, weight: float) -> Finding:
    setting = f"distill.{name}.weight"
    ratio = norm / task if task else math.inf
    numbers: dict[str, Any] = {"value": value, "gradient": norm, "weight": weight}
    if math.isfinite(ratio):
        numbers["ratio"] = ratio
    if not math.isfinite(value) or not math.isfinite(norm):
        what = f"{name}: value {value}, gradient norm {norm}: not finite"
        return Finding("error", AREA, what, NOT_FINITE, setting)
    if weight == 0:
        return Finding("note", AREA, f"{name}: its weight is 0, so it costs time and does nothing",
                       "Leave the term out", setting, numbers)  # fmt: skip
    if norm == 0 or norm < DEAD * weight * task:
        what = f"{name}: value {value:.4g} and gradient norm {norm:.2g}: it is dead, the student learns nothing from it"
        advice = "Leave it out, or compare other maps (`densekd taps RECIPE`); a memory may still be filling"
        return Finding("warning", AREA, what, advice, f"distill.{name}", numbers)
    what = f"{name}: value {value:.4g}, gradient norm {norm:.4g}, {ratio:.3g} times the task's"
    if name == HOLISTIC:
        # Its pull grows as the discriminator learns: now it says nothing of the weight.
        what += " (the discriminator has not learned yet)"
    elif task and not WEAK <= ratio <= STRONG:
        side = "drowns the task" if ratio > STRONG else "is drowned by the task"
        advice = f"A weight of about {weight / ratio:.2g} would make both equal (now {weight:g})"
        return Finding("warning", AREA, f"{what}: it {side}", advice, setting, numbers)
    return Finding("ok", AREA, what, setting=setting, numbers=numbers)


def weights_of(run: Run) -> dict[str, float]:
    """Term's name -> its weight in the steps that `gradients` takes, the last ones; with the discriminator's.

    A schedule that ends at 0 stands out of the list: nothing can be said of its weight there.
    """
    at_end = {term.name: (term, term.weight_at(LATE)) for term in run.distiller.terms}
    found = {name: w for name, (term, w) in at_end.items() if w or not callable(term.weight)}
    if run.distiller.adversary is not None:
        found[HOLISTIC] = run.distiller.adversary.weight
    if run.distiller.pseudo_boxes is not None:
        found["pseudo_boxes"] = run.distiller.pseudo_boxes.weight
    return found
