"""Translate a loss weight from one code base's normalisation into another's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from densekd.losses._checks import check_choice
from densekd.losses.attention_transfer import attention_transfer
from densekd.losses.channel_affinity import channel_affinity
from densekd.losses.intra_class import intra_class
from densekd.losses.localization import localization
from densekd.losses.masked_generative import masked_generative
from densekd.losses.pair_wise.function import pair_wise
from densekd.losses.pearson_features import pearson_features
from densekd.losses.pixel_wise import pixel_wise
from densekd.losses.similarity_preserving import similarity_preserving

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "pixel_wise": pixel_wise,
    "pair_wise": pair_wise,
    "attention_transfer": attention_transfer,
    "channel_affinity": channel_affinity,
    "intra_class": intra_class,
    "localization": localization,
    "masked_generative": masked_generative,
    "pearson_features": pearson_features,
    "similarity_preserving": similarity_preserving,
}


# The other terms of the zoo.
_ONE_CONVENTION = (
    "channel_wise",
    "class_affinity",
    "cross_image",
    "cross_image_memory",
    "decoupled",
    "dist",
    "feature_mimic",
    "fitnet",
    "ssi",
)


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

    For pixel-wise the factor depends on shapes alone (and on the teacher's entropy where ``"authors"`` is one of the
    two, whose gradient is that of N · mean KL); pair-wise conventions measure different graphs, so there it is an
    estimate that holds for tensors like these. For the others it depends on shapes, on masks, and with `intra_class`
    on how many pixels have no label. What draws at random (the masked places of `masked_generative`) draws the same
    for both.

    Args:
        loss: the name of a loss that has conventions, or a function that takes ``convention``.
        from_convention: the one the weight is for.
        to_convention: the one that is wanted.
        student: the loss's first tensor.
        teacher: the loss's second tensor.
        options: arguments of the loss, the same for both: ``labels=`` for `intra_class`, ``regenerate=`` for
            `masked_generative`.

    Example:
        >>> import torch
        >>> s, t = torch.randn(8, 19, 65, 65), torch.randn(8, 19, 65, 65)
        >>> round(scale_between("pixel_wise", "ifvd", "cirkd", s, t))
        19
    """
    if isinstance(loss, str):
        if loss in _ONE_CONVENTION:
            raise ValueError(
                f"{loss} has one convention, that of its paper, so there is no factor between two: compare its value "
                "with that of your code base's own function"
            )
        check_choice("loss", loss, _LOSSES)
        loss = _LOSSES[loss]
    seed = torch.initial_seed()
    values = []
    with torch.no_grad(), torch.random.fork_rng():
        for convention in (from_convention, to_convention):
            torch.manual_seed(seed)
            values.append(float(loss(student, teacher, convention=convention, **options)))
    before, after = values
    if before == 0:
        raise ValueError(
            f"the loss is 0 under {from_convention!r}, which leaves no ratio: give tensors on which student "
            "and teacher differ and of which some pixels count"
        )
    return after / before
