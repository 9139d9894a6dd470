"""Translate a loss weight from one code base's normalisation into another's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from densekd.losses._checks import check_choice
from densekd.losses.pair_wise.function import pair_wise
from densekd.losses.pixel_wise import pixel_wise

_LOSSES: dict[str, Callable[..., Tensor]] = {"pixel_wise": pixel_wise, "pair_wise": pair_wise}


def scale_between(
    loss: str | Callable[..., Tensor],
    from_convention: str,
    to_convention: str,
    student: Tensor,
    teacher: Tensor,
    **options: object,
) -> float:
    """How many times larger `to_convention` comes out than `from_convention` on these tensors.

    A weight tuned under `from_convention` is **divided** by it to weigh the same under `to_convention`.

    For pixel-wise the factor depends on shapes alone (and on the teacher's entropy where ``"authors"`` is one of
    the two, whose gradient is that of N · mean KL); pair-wise conventions measure different graphs, so there it
    is an estimate that holds for tensors like these.

    Args:
        loss: ``"pixel_wise"``, ``"pair_wise"``, or a function that takes ``convention``.
        from_convention: the one the weight is for.
        to_convention: the one that is wanted.
        student: the loss's first tensor.
        teacher: the loss's second tensor.
        options: arguments of the loss, the same for both.

    Example:
        >>> import torch
        >>> s, t = torch.randn(8, 19, 65, 65), torch.randn(8, 19, 65, 65)
        >>> round(scale_between("pixel_wise", "ifvd", "cirkd", s, t))
        19
    """
    if isinstance(loss, str):
        check_choice("loss", loss, _LOSSES)
        loss = _LOSSES[loss]
    with torch.no_grad():
        before = float(loss(student, teacher, convention=from_convention, **options))
        after = float(loss(student, teacher, convention=to_convention, **options))
    if before == 0:
        raise ValueError(
            f"the loss is 0 under {from_convention!r}, which leaves no ratio: give tensors on which student "
            "and teacher differ and of which some pixels count"
        )
    return after / before
