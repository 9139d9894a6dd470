"""One minus the cosine between two maps of directions: the task's loss, and a distillation term."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def angular(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of 1 - cos over the pixels that count; 0 where none does.

    Args:
        student, teacher: (N, 3, h, w), of any length.
        mask: (N, h, w) bool, True where a pixel counts.
    """
    per_pixel = 1 - F.cosine_similarity(student.float(), teacher.float(), dim=1)  # (N, h, w)
    if mask is None:
        return per_pixel.mean()
    return (per_pixel * mask).sum() / mask.sum().clamp(min=1)


class Angular(nn.Module):
    """`angular` as a distillation term."""

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return angular(student, teacher, mask)
