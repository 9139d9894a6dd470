"""One batch through teacher and student: every term of the student's phase, every term of the discriminator's.

Works in any training loop: it neither steps an optimizer nor logs. See docs/own_loop.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from densekd.distill.discriminator import Discriminator, DiscriminatorLoss, student_score
from densekd.distill.stored.store import TeacherCache
from densekd.distill.teacher import Teacher
from densekd.distill.terms import TeacherMaps, Term, ask_teacher, compute_terms, match_sizes
from densekd.losses import holistic
from densekd.ops.resize import resize_labels
from densekd.tasks import Task
from densekd.types import Batch, DenseOutput


@dataclass
class Adversary:
    """The holistic term's settings and its discriminator.

    Attributes:
        network: `DiscriminatorLoss`, or DDP around it (one forward returns adversarial term and penalty: a penalty
            with a backward pass of its own is silently wrong under DDP).
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

    @property
    def discriminator(self) -> Discriminator:
        """The bare discriminator: the student's phase must not go through DDP."""
        inner = getattr(self.network, "module", self.network)
        assert isinstance(inner, DiscriminatorLoss)
        return inner.discriminator


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
        student: a tapped network or DDP around it; returns `DenseOutput`.
        task: supervised terms and masks.
        teacher: None trains the student alone.
        terms: distillation terms.
        adversary: the holistic term, or None.
        mask: ``"label"``, ``"padding"`` or ``"none"``; see `Task.mask`.

    Attributes:
        cache: a store of what the teacher says of each sample; None asks the teacher each time.
    """

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        *,
        teacher: Teacher | None = None,
        terms: Sequence[Term] = (),
        adversary: Adversary | None = None,
        mask: str = "label",
    ) -> None:
        if teacher is None and (terms or adversary is not None):
            raise ValueError("distillation terms need a teacher; give one or leave the terms out")
        self.student = student
        self.task = task
        self.teacher = teacher
        self.terms = list(terms)
        self.adversary = adversary
        self.mask = mask
        self.cache: TeacherCache | None = None

    def student_phase(
        self, batch: Batch, step: int = 0
    ) -> tuple[dict[str, Tensor], HolisticMaps | None]:
        """Teacher, then student, then every weighted term.

        Returns:
            named scalars whose sum is the student's loss, and the maps for `discriminator_phase` (None without one).
        """
        theirs: TeacherMaps | None = None
        mask: Tensor | None = None
        if self.teacher is not None and (self.terms or self.adversary is not None):
            mask = self.task.mask(batch, self.mask)
            theirs = self.teacher_phase(batch, mask)
        mine: DenseOutput = self.student(batch.images)
        losses = self.task.loss(mine, batch)
        if theirs is None:
            return losses, None
        losses.update(compute_terms(self.terms, mine, theirs, mask, self.task))
        if self.adversary is None:
            return losses, None
        assert theirs.holistic is not None
        student, teacher = match_sizes(self.task.holistic_map(mine), theirs.holistic)
        small = (
            None if mask is None else resize_labels(mask, (student.shape[-2], student.shape[-1]))
        )
        if step >= self.adversary.start_step:
            scores = student_score(self.adversary.discriminator, batch.images, student, small)
            losses["distill/holistic"] = self.adversary.weight * holistic(
                scores, mode=self.adversary.mode
            )
        return losses, HolisticMaps(batch.images, teacher.detach(), student.detach(), small)

    def teacher_phase(self, batch: Batch, mask: Tensor | None) -> TeacherMaps:
        """What the terms compare with: from the store where there is one, else from the live teacher."""
        if self.cache is not None:
            return self.cache.maps(batch, mask)
        assert self.teacher is not None
        return ask_teacher(
            self.teacher,
            batch.images,
            self.terms,
            self.task,
            holistic=self.adversary is not None,
        )

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
