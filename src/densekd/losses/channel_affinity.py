"""Channel affinity (CSD): channels that overlap in the teacher's map overlap in the student's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import (
    check_choice,
    check_mask,
    check_pair,
    check_positive,
    full_precision,
    no_autocast,
)
from densekd.losses._masked import NEVER, check_side, fill, mean_of_images, pool_cells

CONVENTIONS = ("mean", "cirkd")


def channel_affinity(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 4.0,
    granularity: int = 2,
    mask: Tensor | None = None,
    convention: str = "mean",
) -> Tensor:
    r"""Mean squared difference of two C × C matrices that say how much two channels' maps overlap.

    .. math:: \frac{1}{N} \sum_n \frac{A_n^2}{C^2} \sum_{c, d} (g^s_{cd} - g^t_{cd})^2, \quad
        g_{cd} = \sum_{i} p_{ci} \, p_{di}, \quad p_c = \mathrm{softmax}_i(\bar x_{ci} / T)

    over the A cells of β×β averaged pixels (β is `granularity`). On logits a channel is a class, and the matrix says
    which classes stand in one place: Feng et al., *Double Similarity Distillation for Semantic Image Segmentation*
    (IEEE TIP 2021), the category-wise half (CSD), with β = 2 and T = 4. Its pixel-wise half is `attention_transfer`
    between layers.

    ========= ==================================================== ==============================
    name      value                                                from
    ========= ==================================================== ==============================
    mean      with A², as above                                    ours
    cirkd     without A²                                           CIRKD
    ========= ==================================================== ==============================

    A probability over A cells is about 1 / A, so published values are about 10⁻¹¹ and shrink as the map grows. A²
    takes that out: ``"mean"`` depends neither on the batch's size nor on the map's. Memory is linear in pixels.

    Args:
        student: logits, or features of one width (N, C, h, w).
        teacher: the same; receives no gradient.
        temperature: T > 0.
        granularity: β, a cell's side in pixels; cells cut by the border average what they have.
        mask: (N, h, w) bool, True where a pixel counts. A cell averages its valid pixels; one without any is
            no cell, and an image without cells drops out of the mean.
        convention: whose normalisation.

    Returns:
        A scalar, at least 0 (float32 for half-precision input); 0 with a graph where no pixel is valid.

    Raises:
        ValueError: the shapes do not fit, or an argument is out of range.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 19, 33, 41, requires_grad=True)
        >>> channel_affinity(student, torch.randn(2, 19, 33, 41)).backward()
    """
    _check_arguments(temperature, granularity, convention)
    check_pair(student, teacher, same_channels=True)
    check_mask(mask, student)
    s, valid = pool_cells(full_precision(student), granularity, mask)
    t, _ = pool_cells(full_precision(teacher.detach()), granularity, mask)
    places = -(-student.shape[2] // granularity) * -(-student.shape[3] // granularity)
    cells = places if valid is None else valid.flatten(1).sum(dim=1).clamp(min=1)  # of each image
    with no_autocast(student):
        s, t = (F.softmax(fill(x / temperature, valid, NEVER).flatten(2), dim=2) for x in (s, t))
        # s sᵀ − t tᵀ by way of s − t, since the two products are nearly equal. The rows of s − t sum to 0, so the mean
        # may be taken off the other factor, which has little else.
        difference, total = s - t, s + t
        per_row = cells if isinstance(cells, int) else cells[:, None, None]
        half = difference @ (total - 2 / per_row).mT
        difference = (half + half.mT) / 2  # (N, C, C)
    scale = cells**2 if convention == "mean" else 1
    return mean_of_images(difference.square().mean(dim=(1, 2)) * scale, valid)


def _check_arguments(temperature: float, granularity: int, convention: str) -> None:
    check_choice("convention", convention, CONVENTIONS)
    check_positive("temperature", temperature)
    check_side(granularity)


class ChannelAffinity(nn.Module):
    """`channel_affinity` with its arguments stored."""

    def __init__(
        self, *, temperature: float = 4.0, granularity: int = 2, convention: str = "mean"
    ) -> None:
        super().__init__()
        _check_arguments(temperature, granularity, convention)
        self.temperature = temperature
        self.granularity = granularity
        self.convention = convention

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return channel_affinity(
            student,
            teacher,
            temperature=self.temperature,
            granularity=self.granularity,
            mask=mask,
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, granularity={self.granularity}, "
            f"convention={self.convention!r}"
        )
