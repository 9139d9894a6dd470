"""Decoupled distillation (DKD): how sure the teacher is of the true class, and what it says of the others, apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import check_mask, check_pair, check_positive, full_precision
from densekd.losses._masked import NEVER, labels_at, mean_of_pixels
from densekd.losses.wants import Wants


def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    ignore_index: int = 255,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Divergence of (true class, any other), and divergence among the other classes, each with a weight of its own.

    .. math:: \frac{T^2}{|V|} \sum_{i \in V} \big[\alpha \, \mathrm{KL}(b_i^t \,\|\, b_i^s)
        + \beta \, \mathrm{KL}(\hat q_i^t \,\|\, \hat q_i^s)\big]

    b is (probability of the true class, the rest), q̂ the softmax over the other classes alone. Zhao et al.,
    *Decoupled Knowledge Distillation* (CVPR 2022), equation 7; α = 1, β = 8, T = 4 as there and in mmrazor, whose
    numbers these are. Dense form: a pixel is a sample. `pixel_wise` is α = 1 and β = the probability that the teacher
    gives to the other classes, which is small where the teacher is sure.

    Published codes take logarithms of probabilities, which are infinite where these underflow; here all is in
    logarithms from the start. The value depends neither on the batch's size nor on the map's. Memory is linear in
    pixels.

    Args:
        student: logits (N, C, h, w) with C > 1.
        teacher: the same; receives no gradient.
        labels: (N, H, W) whole numbers, the true class of each pixel; resized to the map (nearest) where the sizes
            differ. Pixels with `ignore_index`, or a number that is no class, do not count.
        alpha: weight of the true class's part, at least 0.
        beta: weight of the other classes' part, at least 0.
        temperature: T > 0.
        ignore_index: the number of pixels without a label.
        mask: (N, h, w) bool, True where a pixel counts.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no pixel counts.

    Raises:
        ValueError: the shapes do not fit, labels are missing, or an argument is out of range.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 19, 33, 41, requires_grad=True)
        >>> labels = torch.randint(0, 19, (2, 65, 81))
        >>> decoupled(student, torch.randn(2, 19, 33, 41), labels).backward()
    """
    _check_arguments(alpha, beta, temperature)
    check_pair(student, teacher, same_channels=True)
    check_mask(mask, student)
    classes = student.shape[1]
    if classes == 1:
        raise ValueError("one class has no other classes beside it: decoupled needs at least two")
    true = labels_at(labels, student)
    valid = (true != ignore_index) & (true >= 0) & (true < classes)
    if mask is not None:
        valid = valid & mask
    true = true.where(valid, torch.zeros_like(true))[:, None].long()  # (N, 1, h, w)

    # What does not count may hold anything, so it becomes 0 before it meets a logarithm.
    s, t = (
        (full_precision(x) / temperature).masked_fill(~valid[:, None], 0.0)
        for x in (student, teacher.detach())
    )
    target = _divergence(_true_or_not(s, true), _true_or_not(t, true))
    others = _divergence(_among_others(s, true), _among_others(t, true))
    return temperature**2 * mean_of_pixels(alpha * target + beta * others, valid)


def _without_true(z: Tensor, true: Tensor) -> Tensor:
    return z.scatter(1, true, NEVER)


def _true_or_not(z: Tensor, true: Tensor) -> Tensor:
    """(N, C, h, w) logits -> (N, 2, h, w) logarithms of the true class's probability and of the rest's."""
    pair = torch.stack([z.gather(1, true)[:, 0], _without_true(z, true).logsumexp(dim=1)], dim=1)
    return pair.log_softmax(dim=1)


def _among_others(z: Tensor, true: Tensor) -> Tensor:
    """(N, C, h, w) logits -> logarithms of the softmax over all classes but the true one."""
    return _without_true(z, true).log_softmax(dim=1)


def _divergence(log_s: Tensor, log_t: Tensor) -> Tensor:
    """(N, K, h, w) -> (N, h, w)."""
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)


def _check_arguments(alpha: float, beta: float, temperature: float) -> None:
    check_positive("temperature", temperature)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; it must be a finite number, at least 0")
    if alpha == beta == 0:
        raise ValueError("alpha and beta are both 0, which leaves nothing to compare")


class Decoupled(nn.Module):
    """`decoupled` with its arguments stored.

    Attributes:
        wants: asks for the batch's targets, the class of each pixel (N, H, W).
    """

    wants = Wants(targets=True)

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        _check_arguments(alpha, beta, temperature)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        return decoupled(
            student,
            teacher,
            targets,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"
