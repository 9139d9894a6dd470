"""One batch through teacher and student: every term of the student's phase, every term of the discriminator's.

Works in any training loop: it neither steps an optimizer nor logs. See docs/own_loop.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from densekd.distill import alignment
from densekd.distill.balance import gradient_norms
from densekd.distill.discriminator import Discriminator, DiscriminatorLoss, student_score
from densekd.distill.maps import TeacherMaps, is_prediction, match_sizes, select
from densekd.distill.source import LiveTeacher, SeveralTeachers, TeacherSource
from densekd.distill.student import Student
from densekd.distill.teacher import Teacher
from densekd.distill.term import Term
from densekd.losses import holistic
from densekd.models.taps import Taps, evaluating
from densekd.ops.collectives import over_ranks
from densekd.ops.resize import resize_labels
from densekd.tasks import Task
from densekd.types import Batch, DenseOutput


@dataclass
class Adversary:
    """The holistic term's settings and its discriminator.

    Attributes:
        network: a `Discriminator`, which is kept as a `DiscriminatorLoss`; or that, or DDP around it. (One forward
            returns adversarial term and penalty: a penalty with a backward pass of its own is silently wrong under
            DDP.)
        weight: of the student's holistic term.
        mode: ``"wgan-gp"`` or ``"hinge"``.
        penalty: weight of the gradient penalty.
        start_step: the student hears the discriminator from this step on.
    """

    network: nn.Module
    weight: float = 0.1
    mode: str = "wgan-gp"
    penalty: float = 10.0
    start_step: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.network, Discriminator):
            self.network = DiscriminatorLoss(self.network)

    @property
    def discriminator(self) -> Discriminator:
        """The bare discriminator: the student's phase must not go through DDP."""
        inner = getattr(self.network, "module", self.network)
        assert isinstance(inner, DiscriminatorLoss)
        return inner.discriminator


@dataclass(frozen=True)
class PseudoBoxes:
    """A detector's boxes in place of labels: images without labels are learned from as if these were theirs.

    Any detector can teach so, one of sets (RT-DETR, D-FINE) too, whose prediction no map can be compared with.

    Attributes:
        weight: multiplies the supervised loss on these boxes.
        score: boxes of this score and more count, in [0, 1].
    """

    weight: float = 1.0
    score: float = 0.5


@dataclass
class HolisticMaps:
    """What the discriminator's phase needs from the student's: detached maps of one size."""

    images: Tensor
    teacher: Tensor
    student: Tensor
    mask: Tensor | None


class Distiller:
    """Holds who takes part; each call is one phase on one batch.

    Args:
        student: a network, bare or tapped; what the terms compare is tapped where it is bare. A `Student`, or DDP
            around one, that holds these terms is taken as it is.
        task: supervised terms and masks.
        teacher: a network, bare, tapped or as a `Teacher`; it is frozen, and in eval mode for good. A list of networks
            teaches by the mean of their predictions; a dict of them by that too, where a term does not name one of them
            (`Term.teacher_name`). Or any `TeacherSource`. None trains the student alone.
        terms: distillation terms, each under a name of its own.
        adversary: the holistic term, or None.
        pseudo_boxes: the only teacher's boxes teach images without labels; None: they do not.
        mask: which pixels are compared, ``"label"``, ``"padding"`` or ``"none"``; see `Task.mask`.

    Attributes:
        student: `Student`, the network with what its terms train, or DDP around it: give the optimizer its parameters,
            save ``student.model``.
        source: where the teacher's maps come from.
        teachers: name -> frozen network; the name of a single one is empty.

    Raises:
        ValueError: terms without a teacher, two terms of one name, or a term whose teacher is not among those given.
    """

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        *,
        teacher: nn.Module
        | Sequence[nn.Module]
        | Mapping[str, nn.Module]
        | TeacherSource
        | None = None,
        terms: Sequence[Term] = (),
        adversary: Adversary | None = None,
        pseudo_boxes: PseudoBoxes | None = None,
        mask: str = "label",
    ) -> None:
        if teacher is None and (terms or adversary is not None or pseudo_boxes is not None):
            raise ValueError("distillation terms need a teacher; give one or leave the terms out")
        if pseudo_boxes is not None and not isinstance(teacher, nn.Module):
            raise ValueError("pseudo_boxes are those of one network, given as the teacher")
        if pseudo_boxes is not None and not hasattr(task, "pseudo_targets"):
            raise ValueError(f"pseudo_boxes are for detection; {task.name} compares maps")
        names = [term.name for term in terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"several terms are called {', '.join(twice)}; give each a name of its own"
            )
        self.student = _student(student, terms, task)
        self.task = task
        self.terms = list(terms)
        self.adversary = adversary
        self.pseudo_boxes = pseudo_boxes
        self.mask = mask
        self.teachers: dict[str, Teacher] = {}
        self.source: TeacherSource | None = None
        if isinstance(teacher, nn.Module):
            self.teachers = {"": _teacher(teacher, terms, task, None)}
            named = [term.name for term in terms if term.teacher_name is not None]
            if named:
                raise ValueError(
                    f"{', '.join(named)}: teacher_name is for several teachers, given as a dict; there is one"
                )
            self.source = LiveTeacher(
                self.teachers[""],
                terms,
                task,
                holistic=adversary is not None,
                whole=pseudo_boxes is not None,
            )
        elif isinstance(teacher, (Mapping, Sequence)):
            given = dict(teacher) if isinstance(teacher, Mapping) else _numbered(teacher)
            self.teachers = {
                name: _teacher(network, terms, task, name) for name, network in given.items()
            }
            self.source = SeveralTeachers(
                self.teachers, terms, task, holistic=adversary is not None
            )
        else:
            self.source = teacher

    @property
    def teacher(self) -> Teacher | None:
        """The only live teacher; None without one and with several."""
        return next(iter(self.teachers.values())) if len(self.teachers) == 1 else None

    def with_source(self, source: TeacherSource) -> Distiller:
        """The same student, terms and discriminator, with the teacher's maps from another source (a store of them)."""
        other = copy.copy(self)
        other.source = source
        return other

    @torch.no_grad()
    def alignment(self, images: Tensor) -> list[str]:
        """What is made equal between the student and its teachers before they are compared, in words.

        Both run once, in eval mode. A line says what a teacher's own input is, where it is another than the student's,
        or what is done to the maps of a term: tokens become maps, an adapter changes the number of channels, maps are
        resized. What fits as it is has no line, and nor has a teacher that is a `TeacherSource` of yours.

        Args:
            images: (N, C, H, W) RGB in [0, 1]; one is enough.
        """
        if not self.teachers:
            return []
        inner = getattr(self.student, "module", self.student)
        taps = cast("Student", inner).taps
        with evaluating(self.student):
            output: DenseOutput = self.student(images)
            own = {
                term.name: (
                    select(output, term.student, self.task),
                    term.student_maps(output, self.task),
                )
                for term in self.terms
            }
        given = self.terms, self.task
        holistic = self.adversary is not None
        if "" in self.teachers:
            maps = LiveTeacher(self.teachers[""], *given, holistic=holistic).ask(images)
        else:
            maps = SeveralTeachers(self.teachers, *given, holistic=holistic).ask(images)
        others = {name: teacher.network for name, teacher in self.teachers.items()}
        size = images.shape[-2], images.shape[-1]
        lines: list[str | None] = [*alignment.input_lines(taps, others, size)]
        for term in self.terms:
            pair = taps, others.get(term.teacher_name or "")
            before, after = own[term.name]
            other = maps.levels[term.name]
            term.check_levels(after, other)
            lines.append(alignment.term_line(term, before, after, other, pair, self.task))
        if maps.holistic is not None:
            scored = self.task.holistic_map(output)
            lines.append(alignment.holistic_line(scored, maps.holistic))
        return [line for line in lines if line is not None]

    def student_phase(
        self, batch: Batch, step: int = 0
    ) -> tuple[dict[str, Tensor], HolisticMaps | None]:
        """Teacher, then student, then every weighted term.

        In a process group the terms' means run over the batches of all ranks (`densekd.ops.collectives.over_ranks`)
        while gradients are recorded: then every rank must call this, as DDP asks too.

        Args:
            step: optimizer steps done, for schedules of weights and `Adversary.start_step`.

        Returns:
            named scalars whose sum is the student's loss, and the maps for `discriminator_phase` (None without one).
        """
        teacher_maps: TeacherMaps | None = None
        mask: Tensor | None = None
        asked = self.adversary is not None or self.pseudo_boxes is not None
        if self.source is not None and (self.terms or asked):
            mask = self.task.mask(batch, self.mask)
            teacher_maps = self.source.maps(batch, mask)
        output: DenseOutput = self.student(batch.images)
        with over_ranks(torch.is_grad_enabled()):
            losses = self.task.loss(output, batch)
            if teacher_maps is None:
                return losses, None
            weighted = {
                f"distill/{term.name}": term(
                    output, teacher_maps, mask, self.task, targets=batch.targets, step=step
                )
                for term in self.terms
            }
            on_boxes = (
                {}
                if self.pseudo_boxes is None
                else {"distill/pseudo_boxes": self._on_boxes(output, batch, teacher_maps)}
            )
        self._balance(losses, weighted, step)
        losses.update({**weighted, **on_boxes})
        if self.adversary is None:
            return losses, None
        assert teacher_maps.holistic is not None
        student, teacher = match_sizes(self.task.holistic_map(output), teacher_maps.holistic)
        small = (
            None if mask is None else resize_labels(mask, (student.shape[-2], student.shape[-1]))
        )
        if step >= self.adversary.start_step:
            scores = student_score(self.adversary.discriminator, batch.images, student, small)
            losses["distill/holistic"] = self.adversary.weight * holistic(
                scores, mode=self.adversary.mode
            )
        return losses, HolisticMaps(batch.images, teacher.detach(), student.detach(), small)

    def _on_boxes(self, output: DenseOutput, batch: Batch, maps: TeacherMaps) -> Tensor:
        """The weighted supervised loss of the images without labels, with the teacher's boxes for truth."""
        assert self.pseudo_boxes is not None
        task = cast("Any", self.task)  # a task of boxes
        targets = task.pseudo_targets(maps.prediction, batch, self.pseudo_boxes.score)
        taught = replace(batch, targets=targets, labelled=~batch.labelled)
        losses = list(self.task.loss(output, taught).values())
        return self.pseudo_boxes.weight * torch.stack(losses).sum()

    def weights_at(self, step: int) -> dict[str, float]:
        """``weight/NAME`` of each term whose weight changes over the steps, as it multiplies the loss."""
        weights = {}
        # A plain list, since `densekd bench` times the rounds of a loop over the terms themselves.
        for term in self.terms[:]:
            if not term.is_weight_fixed:
                factor = 1.0 if term.balance is None else float(term.balance.factor())
                weights[f"weight/{term.name}"] = term.weight_at(step) * factor
        return weights

    def _balance(self, task: dict[str, Tensor], terms: dict[str, Tensor], step: int) -> None:
        """Measure the gradients of balanced terms where that is due, and scale the terms."""
        balanced = [(t, t.balance) for t in self.terms[:] if t.balance is not None]
        due = [
            (term, balance)
            for term, balance in balanced
            if balance.is_due(step) and term.weight_at(step) > 0
        ]
        if due and torch.is_grad_enabled():
            inner = getattr(self.student, "module", self.student)
            network = cast("nn.Module", inner.model)
            parameters = [p for p in network.parameters() if p.requires_grad]
            # A term's weight is taken out again: its own norm does not depend on a schedule.
            raw = [terms[f"distill/{term.name}"] / term.weight_at(step) for term, _ in due]
            norms = gradient_norms([torch.stack(list(task.values())).sum(), *raw], parameters)
            for place, (_, balance) in enumerate(due, start=1):
                balance.update(norms[[0, place]])
        for term, balance in balanced:
            terms[f"distill/{term.name}"] = terms[f"distill/{term.name}"] * balance.factor()

    def discriminator_phase(
        self, maps: HolisticMaps, alpha: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The discriminator's own terms on detached maps; their sum is its loss.

        Args:
            alpha: (N, 1, 1, 1) in [0, 1], where between the two maps the penalty is taken; drawn when None.
        """
        assert self.adversary is not None, "no discriminator to train"
        if alpha is None:
            n = maps.images.shape[0]
            alpha = torch.rand(n, 1, 1, 1, device=maps.images.device)
        return self.adversary.network(
            maps.images,
            maps.teacher,
            maps.student,
            mask=maps.mask,
            alpha=alpha,
            mode=self.adversary.mode,
            penalty_weight=self.adversary.penalty,
        )


def _student(student: nn.Module, terms: Sequence[Term], task: Task) -> nn.Module:
    """What DDP wraps, or is wrapped by it already: the tapped network with the terms."""
    inner = student
    if isinstance(student, nn.parallel.DistributedDataParallel):
        inner = student.module
    held = list(inner.terms) if isinstance(inner, Student) else []
    missing = [term for term in terms if not any(term is other for other in held)]
    if inner is not student:
        own = [term.name for term in missing if term.state_dict()]
        if own:
            raise ValueError(
                f"DDP around the student knows nothing of what {', '.join(own)} trains or remembers: give the network "
                "itself, then wrap the result, distiller.student = DDP(distiller.student)"
            )
        return student
    if isinstance(student, Student):
        return Student(student.taps, terms) if missing else student
    return Student(_tapped(student, [term.student for term in terms], task), terms)


def _teacher(network: nn.Module, terms: Sequence[Term], task: Task, name: str | None) -> Teacher:
    if isinstance(network, Teacher):
        return network
    sources = [term.teacher for term in terms if term.teacher_name == name]
    return Teacher(_tapped(network, sources, task))


def _tapped(network: nn.Module, sources: Sequence[str], task: Task) -> Taps:
    if isinstance(network, Taps):
        return network
    return Taps(network, {source: source for source in sources if not is_prediction(source, task)})


def _numbered(networks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    return {str(i): network for i, network in enumerate(networks)}
