"""Cross-image relations within a batch (CIRKD): which pixels of one image resemble which of another."""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses._checks import (
    check_mask,
    check_pair,
    check_positive,
    full_precision,
    no_autocast,
)
from densekd.losses._masked import check_side, pool_cells, unit
from densekd.losses._similarity_rows import row_divergence


def cross_image(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.1,
    granularity: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Divergence of each pixel's similarities to the pixels of each image of the batch.

    .. math:: \frac{1}{N^2} \sum_{m, n} \frac{1}{|V_m|} \sum_{i \in V_m} \mathrm{KL}(r^t_{in} \,\|\, r^s_{in}), \quad
        r_{in} = \operatorname{softmax}_{j \in V_n} (\cos(f_{mi}, f_{nj}) / \tau)

    Yang et al., *Cross-Image Relational Knowledge Distillation for Semantic Segmentation* (CVPR 2022), its
    mini-batch part, τ = 0.1. The numbers are those of the published code, which also pairs each image with itself,
    has the teacher's distribution first, and does not multiply by τ². A batch of one image is compared with itself.
    The memories of the same paper are `CrossImageMemory`.

    Work is C · (N · h · w)², so a `granularity` of 2 or 4 is 16 or 256 times cheaper. Memory is linear in pixels but
    for a slice of the matrix: 2²¹ numbers on a CPU, 2²⁴ elsewhere, and as many for what is made of them. The value
    depends neither on the batch's size nor on the map's.

    Args:
        student: (N, C, h, w).
        teacher: (N, C', h, w); the widths may differ. It receives no gradient.
        temperature: τ > 0.
        granularity: side in pixels of the cells that are averaged before all else; 1 compares pixels, as published.
        mask: (N, h, w) bool, True where a pixel counts. An image without valid pixels is no image of the batch.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no pixel is valid.

    Raises:
        ValueError: the shapes do not fit, or an argument is out of range.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 24, 33, 41, requires_grad=True)
        >>> cross_image(student, torch.randn(2, 64, 33, 41), granularity=4).backward()
    """
    check_positive("temperature", temperature)
    check_side(granularity)
    check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)
    with no_autocast(student):
        s, valid = pool_cells(full_precision(student), granularity, mask)
        t, _ = pool_cells(full_precision(teacher.detach()), granularity, mask)
        s, t = (unit(x, dim=1).movedim(1, -1).flatten(0, -2) for x in (s, t))  # (N·p·q, C)
        columns = None if valid is None else valid.flatten()
        images = student.shape[0]
        divergence = row_divergence(
            (s, s), (t, t), temperature=temperature, groups=images, valid=columns
        )
    divergence = divergence.view(images, -1, images)  # of a row's image, row, image of the columns
    if valid is None:
        return divergence.mean()
    counts = valid.flatten(1).sum(dim=1)  # (N,)
    pairs = (counts > 0).sum() ** 2
    of_rows = divergence.sum(dim=2).masked_fill(~valid.flatten(1), 0.0)
    return (of_rows.sum(dim=1) / counts.clamp(min=1)).sum() / pairs.clamp(min=1)


class CrossImage(nn.Module):
    """`cross_image` with its arguments stored."""

    def __init__(self, *, temperature: float = 0.1, granularity: int = 1) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_side(granularity)
        self.temperature = temperature
        self.granularity = granularity

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return cross_image(
            student,
            teacher,
            temperature=self.temperature,
            granularity=self.granularity,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, granularity={self.granularity}"
