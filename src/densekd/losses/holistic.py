"""Holistic distillation (Ho): the two sides of the adversarial game, as functions of a discriminator's scores.

Higher scores mean "more like the teacher". The discriminator itself stands in densekd.distill.discriminator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import check_choice, full_precision

MODES = ("wgan-gp", "hinge")


def holistic(student_scores: Tensor, *, mode: str = "wgan-gp") -> Tensor:
    """The student's side: −mean D(S), the same in both modes.

    Args:
        student_scores: one score an image, any shape; gradients must reach the student through them.
        mode: ``"wgan-gp"`` or ``"hinge"``.

    Returns:
        A scalar of either sign. The paper adds 0.1 of it to the student's loss.
    """
    check_choice("mode", mode, MODES)
    return -full_precision(student_scores).mean()


def discriminator_loss(
    teacher_scores: Tensor, student_scores: Tensor, *, mode: str = "wgan-gp"
) -> Tensor:
    """The discriminator's side, without the penalty.

    wgan-gp: mean D(S) − mean D(T). hinge: mean max(0, 1 − D(T)) + mean max(0, 1 + D(S)).

    Args:
        teacher_scores: one score an image, of the teacher's maps.
        student_scores: one score an image, of the student's maps, detached from the student.
        mode: ``"wgan-gp"`` or ``"hinge"``.
    """
    check_choice("mode", mode, MODES)
    teacher_scores, student_scores = full_precision(teacher_scores), full_precision(student_scores)
    if mode == "hinge":
        return F.relu(1 - teacher_scores).mean() + F.relu(1 + student_scores).mean()
    return student_scores.mean() - teacher_scores.mean()


def gradient_penalty(
    scores: Tensor, inputs: Tensor, *, target: float = 1.0, eps: float = 1e-12
) -> Tensor:
    r"""Mean over images of :math:`(\|\partial D / \partial x\|_2 - 1)^2`; the caller applies the weight (10).

    Differs from the authors' code: eps stands inside the root, where a zero gradient gives NaN without it.

    Args:
        scores: of `inputs`, one an image; each must depend on its own image only.
        inputs: (N, ...) with ``requires_grad``, what the scores were computed from.
        target: the norm that is asked for.
        eps: inside the root.

    Returns:
        A scalar with a graph to the discriminator's parameters (twice differentiable).
    """
    if not inputs.requires_grad:
        raise ValueError(
            "inputs do not require grad: call inputs.requires_grad_() before the scores are computed"
        )
    (gradient,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    norm = (full_precision(gradient).flatten(1).square().sum(dim=1) + eps).sqrt()  # (N,)
    return (norm - target).square().mean()


class Holistic(nn.Module):
    """`holistic` with its mode stored."""

    def __init__(self, *, mode: str = "wgan-gp") -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        self.mode = mode

    def forward(self, student_scores: Tensor) -> Tensor:
        return holistic(student_scores, mode=self.mode)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"
