"""Localization distillation (LD): where each edge of a box lies, as a distribution, and the student's follows."""

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
from densekd.losses._masked import fill
from densekd.losses.wants import Wants
from densekd.ops.collectives import mean_over_ranks

CONVENTIONS = ("paper", "mmdet")


def localization(
    student: Tensor,
    teacher: Tensor,
    *,
    bins: int,
    edges: int = 4,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    convention: str = "paper",
) -> Tensor:
    r"""Kullback–Leibler divergence of the distributions of a box's edges, over places.

    .. math:: \frac{T^2}{\sum_{i \in V} w_i} \sum_{i \in V} w_i \sum_{e} \mathrm{KL}(p^t_{ie} \,\|\, p^s_{ie}),
        \quad p_{ie} = \mathrm{softmax}(z_{ie} / T)

    For heads that give each edge as a distribution over distances, as Generalized Focal Loss does; FCOS and RetinaNet
    give one number an edge, and this loss is not for them. Zheng et al., *Localization Distillation for Dense Object
    Detection* (CVPR 2022); T = 10 as in its code.

    ========= ===================================================== =================================
    name      value                                                 from
    ========= ===================================================== =================================
    paper     the sum over edges                                    the equation, times T²
    mmdet     the mean over edges and bins                          mmdetection, the published code
    ========= ===================================================== =================================

    Which places count (the paper's main region, around objects, and its valuable localization region, beside them) is
    for the caller to say: by `mask`, or by `weight` with the teacher's highest class score, as mmdetection weights
    the main region. The value depends neither on the batch's size nor on the map's. Memory is linear in places.

    Args:
        student: (N, edges · bins, h, w), the logits of one level; channel e · bins + b is bin b of edge e.
        teacher: the same; receives no gradient.
        bins: distances of each edge's distribution (17 for Generalized Focal Loss's 0 to 16).
        edges: of a box; 4, or 5 with an angle.
        temperature: T > 0.
        weight: (N, 1, h, w), at least 0; None weighs all places alike. Receives no gradient.
        mask: (N, h, w) bool, True where a place counts.
        convention: whose mean.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where the weights sum to nothing.

    Raises:
        ValueError: the shapes do not fit, or an argument is out of range.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 4 * 17, 16, 16, requires_grad=True)
        >>> localization(student, torch.randn(2, 4 * 17, 16, 16), bins=17).backward()
    """
    _check_arguments(bins, edges, temperature, convention)
    check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)
    n, c, h, w = student.shape
    if c != edges * bins or teacher.shape[1] != c:
        raise ValueError(
            f"student has {c} channels and teacher {teacher.shape[1]}; expected {edges} edges of {bins} bins, "
            f"{edges * bins} channels: name the layer that gives the edges' distributions, and its bins"
        )
    if weight is not None and tuple(weight.shape) != (n, 1, h, w):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected {(n, 1, h, w)}, one a place: resize it with "
            "densekd.ops.resize.resize_map"
        )
    log_s, log_t = (
        F.log_softmax(
            fill(full_precision(x) / temperature, mask).unflatten(1, (edges, bins)), dim=2
        )
        for x in (student, teacher.detach())
    )
    divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=(1, 2))
    if convention == "mmdet":
        divergence = divergence / (edges * bins)
    weights = divergence.new_ones(n, h, w)
    if weight is not None:
        weights = weight.detach()[:, 0].to(divergence.dtype)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return temperature**2 * mean_over_ranks((weights * divergence).sum(), weights.sum())


def _check_arguments(bins: int, edges: int, temperature: float, convention: str) -> None:
    check_choice("convention", convention, CONVENTIONS)
    check_positive("temperature", temperature)
    for name, value, least in (("bins", bins, 2), ("edges", edges, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {least}")


class Localization(nn.Module):
    """`localization` with its arguments stored.

    Attributes:
        wants: asks to be called with ``weight=``, the teacher's confidence (N, 1, h, w).
    """

    wants = Wants(confidence=True)

    def __init__(
        self,
        *,
        bins: int,
        edges: int = 4,
        temperature: float = 10.0,
        convention: str = "paper",
    ) -> None:
        super().__init__()
        _check_arguments(bins, edges, temperature, convention)
        self.bins = bins
        self.edges = edges
        self.temperature = temperature
        self.convention = convention

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        return localization(
            student,
            teacher,
            bins=self.bins,
            edges=self.edges,
            temperature=self.temperature,
            weight=weight,
            mask=mask,
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        return (
            f"bins={self.bins}, edges={self.edges}, temperature={self.temperature}, "
            f"convention={self.convention!r}"
        )
