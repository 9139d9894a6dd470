"""DIST: the student's probabilities correlate with the teacher's, over classes and over pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.losses._checks import check_mask, check_pair, check_positive, full_precision
from densekd.losses._masked import fill, mean_of_pixels, moments_over_ranks
from densekd.ops.collectives import count_over_ranks, is_joined

# Added to each variance inside the root. At a pixel where all classes are equally likely the correlation has no
# direction, and this bounds its gradient there; variances of probabilities that say something are far larger.
EPS = 1e-10


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""One minus Pearson's correlation of probabilities, over the classes of a pixel and over the pixels of a class.

    .. math:: T^2 \Big[\frac{\beta}{|V|} \sum_{i \in V} (1 - \rho_c(q^s_{ic}, q^t_{ic}))
        + \frac{\gamma}{C} \sum_c (1 - \rho_{i \in V}(q^s_{ic}, q^t_{ic}))\Big], \quad q = \mathrm{softmax}(z / T)

    Huang et al., *Knowledge Distillation from A Stronger Teacher* (NeurIPS 2022): β is
    `inter_weight`, γ is `intra_weight`. A correlation forgives a student that is less sure than its teacher as long
    as it ranks alike.

    The second sum runs over **all valid pixels of the batch**, as in the published code for segmentation, which
    flattens to (N · h · w, C) first. Libraries that leave the flattening out correlate over the batch alone, and give
    no gradient at batch 1; this function gives one. Neither the batch's size nor the map's changes the value, and
    memory is linear in pixels. Within `densekd.ops.collectives.over_ranks` the batch is that of
    all ranks.

    Args:
        student: logits (N, C, h, w) with C > 1.
        teacher: the same; receives no gradient.
        inter_weight: β, of the correlations over classes.
        intra_weight: γ, of the correlations over pixels.
        temperature: T > 0. The published code for segmentation has 1.
        mask: (N, h, w) bool, True where a pixel counts.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no pixel is valid.

    Raises:
        ValueError: the shapes do not fit, there is one class, or an argument is out of range.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 19, 33, 41, requires_grad=True)
        >>> dist(student, torch.randn(2, 19, 33, 41)).backward()
    """
    _check_arguments(inter_weight, intra_weight, temperature)
    check_pair(student, teacher, same_channels=True)
    check_mask(mask, student)
    if student.shape[1] == 1:
        raise ValueError(
            "a softmax over one channel is 1 everywhere: dist needs at least two classes"
        )
    s, t = (
        fill(full_precision(x) / temperature, mask)
        .softmax(dim=1)
        .movedim(1, 0)
        .flatten(1)  # (C, N·h·w)
        for x in (student, teacher.detach())
    )
    valid = None if mask is None else mask.flatten()
    if valid is not None:
        s, t = s.masked_fill(~valid, 0.0), t.masked_fill(~valid, 0.0)
    inter = 1 - _correlation(s, t, dim=0)  # (N·h·w,)
    if is_joined():
        intra = (1 - _correlation_over_ranks(s, t, valid)).mean()
    else:
        intra = (1 - _correlation(s, t, dim=1, valid=valid)).mean()
    value = inter_weight * mean_of_pixels(inter, valid) + intra_weight * intra
    if valid is not None:
        value = value * (count_over_ranks(valid.sum()) > 0)
    return temperature**2 * value


def _correlation(a: Tensor, b: Tensor, *, dim: int, valid: Tensor | None = None) -> Tensor:
    """Pearson's correlation along `dim`, of the valid entries; what is not valid must be 0 in both."""
    count: Tensor | int = a.shape[dim] if valid is None else valid.sum().clamp(min=1)
    a, b = (x - x.sum(dim=dim, keepdim=True) / count for x in (a, b))
    if valid is not None:
        a, b = a.masked_fill(~valid, 0.0), b.masked_fill(~valid, 0.0)
    covariance = (a * b).sum(dim=dim) / count
    variances = (a.square().sum(dim=dim) / count + EPS) * (b.square().sum(dim=dim) / count + EPS)
    return covariance * torch.rsqrt(variances)


def _correlation_over_ranks(a: Tensor, b: Tensor, valid: Tensor | None) -> Tensor:
    """`_correlation` along dim 1 of the entries of all ranks."""
    count, (of_a, of_b, covariance) = moments_over_ranks(a, b, valid)
    return covariance / count * torch.rsqrt((of_a / count + EPS) * (of_b / count + EPS))


def _check_arguments(inter_weight: float, intra_weight: float, temperature: float) -> None:
    check_positive("temperature", temperature)
    for name, value in (("inter_weight", inter_weight), ("intra_weight", intra_weight)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; it must be a finite number, at least 0")
    if inter_weight == intra_weight == 0:
        raise ValueError(
            "inter_weight and intra_weight are both 0, which leaves nothing to compare"
        )


class Dist(nn.Module):
    """`dist` with its arguments stored."""

    def __init__(
        self, *, inter_weight: float = 1.0, intra_weight: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        _check_arguments(inter_weight, intra_weight, temperature)
        self.inter_weight = inter_weight
        self.intra_weight = intra_weight
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return dist(
            student,
            teacher,
            inter_weight=self.inter_weight,
            intra_weight=self.intra_weight,
            temperature=self.temperature,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return (
            f"inter_weight={self.inter_weight}, intra_weight={self.intra_weight}, "
            f"temperature={self.temperature}"
        )
