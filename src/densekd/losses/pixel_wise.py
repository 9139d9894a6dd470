"""Pixel-wise distillation (Pi): the student's class distribution at each pixel follows the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import (
    check_choice,
    check_mask,
    check_pair,
    check_positive,
    full_precision,
)

CONVENTIONS = ("paper", "authors", "ifvd", "cirkd", "mmrazor")


def pixel_wise(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    convention: str = "paper",
) -> Tensor:
    r"""Kullback–Leibler divergence of class distributions, averaged over the valid pixels.

    .. math:: \frac{T^2}{|V|} \sum_{i \in V} \mathrm{KL}(q_i^t \,\|\, q_i^s), \quad q = \mathrm{softmax}(z / T)

    Every convention is a fixed multiple of a mean over valid pixels, so a mask changes which pixels count
    and never the factor between two conventions (the published codes know no mask):

    ========= ============================================== ==================================
    name      value                                          from
    ========= ============================================== ==================================
    paper     T² · mean KL                                   Structured Knowledge Distillation
    authors   N · mean soft cross-entropy (T = 1 only)       its published code, master
    ifvd      mean KL / C, no T²                             IFVD, TorchDistiller, authors 2019
    cirkd     T² · mean KL, the paper's form                 CIRKD
    mmrazor   T² · h · w · mean KL                           mmrazor, torchdistill
    ========= ============================================== ==================================

    Args:
        student: logits (N, C, h, w).
        teacher: logits (N, C, h, w); receives no gradient.
        temperature: T > 0, softens both distributions. T² keeps the gradient's size (where it applies).
        mask: (N, h, w) bool, True where a pixel counts. All False gives 0 with a graph.
        convention: whose normalisation.

    Returns:
        A scalar, at least 0 (float32 for half-precision input).

    Example:
        >>> import torch
        >>> student = torch.randn(2, 19, 33, 41, requires_grad=True)
        >>> pixel_wise(student, torch.randn(2, 19, 33, 41), temperature=4.0).backward()
    """
    _check_arguments(temperature, convention)
    check_pair(student, teacher, same_channels=True)
    check_mask(mask, student)

    n, c, h, w = student.shape
    log_s = F.log_softmax(full_precision(student) / temperature, dim=1)
    log_t = F.log_softmax(full_precision(teacher.detach()) / temperature, dim=1)
    if convention == "authors":
        # Differs from the paper: the teacher's entropy is not subtracted. The gradient is the same.
        per_pixel = -(log_t.exp() * log_s).sum(dim=1)  # (N, h, w)
    else:
        per_pixel = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)

    count = per_pixel.numel() if mask is None else mask.sum().clamp(min=1)
    if mask is not None:
        per_pixel = per_pixel.masked_fill(~mask, 0.0)
    mean = per_pixel.sum() / count
    scale = {
        "paper": temperature**2,
        "authors": n,
        "ifvd": 1 / c,
        "cirkd": temperature**2,
        "mmrazor": temperature**2 * h * w,
    }
    return mean * scale[convention]


def _check_arguments(temperature: float, convention: str) -> None:
    check_choice("convention", convention, CONVENTIONS)
    check_positive("temperature", temperature)
    if convention == "authors" and temperature != 1:
        raise ValueError(
            f"temperature is {temperature}, but convention 'authors' knows only 1: take 'paper' for another"
        )


class PixelWise(nn.Module):
    """`pixel_wise` with its arguments stored."""

    def __init__(self, *, temperature: float = 1.0, convention: str = "paper") -> None:
        super().__init__()
        _check_arguments(temperature, convention)
        self.temperature = temperature
        self.convention = convention

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return pixel_wise(
            student,
            teacher,
            temperature=self.temperature,
            mask=mask,
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, convention={self.convention!r}"
