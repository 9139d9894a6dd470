"""Intra-class variation (IFVD): how far each pixel's feature lies from the middle of its class."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import (
    check_choice,
    check_mask,
    check_pair,
    full_precision,
    no_autocast,
)
from densekd.losses._masked import check_labels, fill, labels_at, unit
from densekd.losses.wants import Wants
from densekd.ops.collectives import mean_over_ranks

CONVENTIONS = ("paper", "cirkd")


def intra_class(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    *,
    num_classes: int | None = None,
    ignore_index: int = 255,
    mask: Tensor | None = None,
    convention: str = "paper",
) -> Tensor:
    r"""Mean squared difference of the cosines between each pixel's feature and its class's prototype in that image.

    .. math:: \frac{1}{|V|} \sum_{i \in V} (m^s_i - m^t_i)^2, \quad m_i = \cos(f_i, \mu_{y_i}), \quad
        \mu_k = \operatorname{mean}_{j \in V, y_j = k} f_j

    Wang et al., *Intra-class Feature Variation Distillation for Semantic Segmentation* (ECCV 2020).
    Each image has prototypes of its own.

    ========= ========================================================= =========================================
    name      value                                                     from
    ========= ========================================================= =========================================
    paper     mean over pixels that have a label                        the paper
    cirkd     the sum over these, divided by **all** pixels             IFVD's published code, CIRKD
    ========= ========================================================= =========================================

    In the published codes a pixel without a label is its own prototype: it adds 0 to the sum and 1 to the count, so
    that crops with many ignored pixels weigh less. They also resize labels as `torch.nn.Upsample` does by default;
    ``"cirkd"`` does the same, while ``"paper"`` resizes them on the grid that maps are resized on.

    The value of ``"paper"`` does not depend on the batch's size, and on the map's only through borders between
    classes. Memory: h · w · num_classes a batch's image.

    Args:
        student: (N, C, h, w).
        teacher: (N, C', h, w); the widths may differ. It receives no gradient.
        labels: (N, H, W) whole numbers, the class of each pixel; resized to the map where the sizes differ. Pixels
            with `ignore_index`, or a number that is no class, do not count, neither in a prototype.
        num_classes: how many classes there are. None reads the largest label, which makes a GPU wait.
        ignore_index: the number of pixels without a label.
        mask: (N, h, w) bool, True where a pixel counts.
        convention: whose mean.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no pixel counts.

    Raises:
        ValueError: the shapes do not fit, labels are missing, or an argument is out of range.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 64, 33, 41, requires_grad=True)
        >>> labels = torch.randint(0, 19, (2, 65, 81))
        >>> intra_class(student, torch.randn(2, 256, 33, 41), labels, num_classes=19).backward()
    """
    _check_arguments(num_classes, convention)
    check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)
    resize: Callable[[Tensor | None, Tensor], Tensor]
    resize = labels_at if convention == "paper" else _labels_by_upsample
    classes = resize(labels, student)
    valid = (classes != ignore_index) & (classes >= 0)
    if num_classes is None:
        num_classes = int(classes.where(valid, torch.zeros_like(classes)).max()) + 1
    valid = valid & (classes < num_classes)
    counted = valid if mask is None else valid & mask

    with no_autocast(student):
        s = _cosines(full_precision(student), classes, counted, num_classes)
        t = _cosines(full_precision(teacher.detach()), classes, counted, num_classes)
    total = (s - t.to(s.dtype)).square().masked_fill(~counted, 0.0).sum()
    if convention == "paper":
        return mean_over_ranks(total, counted.sum())
    return mean_over_ranks(total, counted.numel() if mask is None else mask.sum())


def _cosines(x: Tensor, classes: Tensor, counted: Tensor, num_classes: int) -> Tensor:
    """(N, C, h, w) -> (N, h, w): the cosine of each counted pixel with the mean of its class in its image."""
    n, _, h, w = x.shape
    x = fill(x, counted).flatten(2)  # (N, C, h·w)
    numbers = torch.arange(num_classes, device=x.device)[:, None]
    member = (classes.flatten(1)[:, None] == numbers) & counted.flatten(1)[:, None]  # (N, K, h·w)
    # A product in place of a scatter, whose sums on a GPU come in any order. A cosine does not ask for the count.
    member = member.to(x.dtype)
    prototypes = unit(
        member @ x.mT / member.sum(dim=2, keepdim=True).clamp(min=1), dim=2
    )  # (N, K, C)
    return ((prototypes @ unit(x, dim=1)) * member).sum(dim=1).view(n, h, w)


def _labels_by_upsample(labels: Tensor | None, x: Tensor) -> Tensor:
    labels = check_labels(labels, x)
    return F.interpolate(labels[:, None].double(), size=x.shape[-2:], mode="nearest")[:, 0].long()


def _check_arguments(num_classes: int | None, convention: str) -> None:
    check_choice("convention", convention, CONVENTIONS)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 1, or None")


class IntraClass(nn.Module):
    """`intra_class` with its arguments stored.

    Attributes:
        wants: asks for the batch's targets, the class of each pixel (N, H, W).
    """

    wants = Wants(targets=True)

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        ignore_index: int = 255,
        convention: str = "paper",
    ) -> None:
        super().__init__()
        _check_arguments(num_classes, convention)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.convention = convention

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        return intra_class(
            student,
            teacher,
            targets,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            mask=mask,
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, convention={self.convention!r}"
