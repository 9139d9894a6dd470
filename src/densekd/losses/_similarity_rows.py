"""Divergence of two similarity matrices, row by row, without holding either whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from densekd.losses._masked import NEVER


def row_divergence(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    *,
    temperature: float,
    groups: int = 1,
    valid: Tensor | None = None,
) -> Tensor:
    """KL(teacher ‖ student) of the softmax of each row's similarities, within each group of columns.

    Rows come in slices of 2²¹ similarities (8 MiB in float32) on a CPU and 2²⁴ elsewhere. Where there is more than
    one slice, the backward pass computes each again, so that no more than a slice is held at a time. (Under
    `torch.compile` slices are unrolled.)

    Args:
        student: rows (R, C) and columns (V, C), of length 1.
        teacher: the same with its own width.
        temperature: divides similarities.
        groups: the columns are this many groups of V / groups; each is a distribution of its own.
        valid: (V,) bool, True where a column counts. A group without any gives 0.

    Returns:
        (R, groups).
    """
    rows, columns = student[0].shape[0], student[1].shape[0]
    limit = 2**21 if student[0].device.type == "cpu" else 2**24
    step = max(1, limit // columns)

    def of_rows(s: Tensor, t: Tensor, s_columns: Tensor, t_columns: Tensor) -> Tensor:
        log_s, log_t = (
            F.log_softmax(similarities.view(len(s), groups, -1), dim=2)
            for similarities in (_scaled(s, s_columns), _scaled(t, t_columns))
        )
        return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=2)

    def _scaled(x: Tensor, x_columns: Tensor) -> Tensor:
        similarities = x @ x_columns.T / temperature
        return similarities if valid is None else similarities.masked_fill(~valid, NEVER)

    if step >= rows:
        return of_rows(student[0], teacher[0], student[1], teacher[1])
    parts = []
    for start in range(0, rows, step):
        part = slice(start, start + step)
        parts.append(
            checkpoint(
                of_rows,
                student[0][part],
                teacher[0][part],
                student[1],
                teacher[1],
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(parts)
