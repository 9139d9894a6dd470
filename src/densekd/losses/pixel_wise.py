"""Pixel-wise distillation (Pi): what the student says at each pixel follows what the teacher says there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import (
    as_class_weights,
    check_choice,
    check_class_weights,
    check_map,
    check_mask,
    check_pair,
    check_positive,
    full_precision,
)
from densekd.losses._upsampled import bands_pay, divergence_sum
from densekd.losses.wants import Wants
from densekd.ops.collectives import is_joined, mean_over_ranks, world_size
from densekd.ops.conditions import require
from densekd.ops.resize import resize_map

CONVENTIONS = ("paper", "authors", "ifvd", "cirkd", "mmrazor")
FORMS = ("softmax", "sigmoid", "regression")


def pixel_wise(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    form: str = "softmax",
    convention: str = "paper",
    size: Sequence[int] | None = None,
    class_weights: Tensor | None = None,
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

    What a pixel says is not always one class of many. Two more forms are the same mean over valid pixels
    (convention ``"paper"`` alone):

    - ``"sigmoid"``, for detectors: each class is a yes or no of its own. T² times the sum over classes of the
      divergence of the two Bernoulli distributions, as in the paper's section on detection (class logits of
      every level).
    - ``"regression"``, for depth without bins: :math:`|\log s_i - \log t_i|`, mean over channels, since a
      softmax over one channel is constant. Ours: the paper has no form for it.

    Args:
        student: logits (N, C, h, w); positive values for ``"regression"``.
        teacher: the same; receives no gradient.
        temperature: T > 0, softens both distributions. T² keeps the gradient's size (where it applies).
        mask: (N, h, w) bool, True where a pixel counts. All False gives 0 with a graph.
        form: what the C channels are: ``"softmax"``, ``"sigmoid"`` or ``"regression"``.
        convention: whose normalisation.
        size: height and width at which to compare, for ``"softmax"``. Both maps, which may then differ in size, are
            resized to it bilinearly (align_corners); where this makes them large, some rows at a time. The mask
            has that size, and so does the map that ``"mmrazor"`` multiplies by. None: the size that both have.
        class_weights: (C,), each at least 0, on the maps' device, for ``"softmax"``. The mean over valid pixels is then
            weighted, as that of a cross-entropy with class weights is; a pixel's weight is the one that the teacher
            expects there, :math:`\sum_c w_c \, \mathrm{softmax}(z^t_i)_c` (at temperature 1). Ours: where the task
            weighs its classes and this term does not, it takes back what the weights gave to rare classes.

    Returns:
        A scalar, at least 0 (float32 for half-precision input).

    Raises:
        ValueError: shapes that do not fit, or arguments that exclude each other.

    Example:
        >>> import torch
        >>> student = torch.randn(2, 19, 33, 41, requires_grad=True)
        >>> pixel_wise(student, torch.randn(2, 19, 33, 41), temperature=4.0).backward()
    """
    _check_arguments(temperature, form, convention, size, class_weights)
    if size is None:
        check_pair(student, teacher, same_channels=True)
        size = student.shape[2:]
    else:
        _check_images_and_classes(student, teacher)
    n, c = student.shape[:2]
    h, w = size
    check_mask(mask, student.new_empty(n, 0, h, w))

    if form == "softmax" and c == 1:
        raise ValueError(
            "a softmax over one channel is 1 whatever the network says; take form 'sigmoid' for one class, "
            "'regression' for depth"
        )
    check_class_weights(class_weights, c)
    s, t = full_precision(student), full_precision(teacher.detach())
    count = n * h * w if mask is None else mask.sum()
    if class_weights is None and (bands_pay(s, (h, w)) or bands_pay(t, (h, w))):
        # Differs from the paper for "authors": see `_softmax_form`.
        s, t = s / temperature, t / temperature
        total = divergence_sum(s, t, (h, w), mask, entropy=convention != "authors")
    else:
        s, t = resize_map(s, (h, w)), resize_map(t, (h, w))
        if mask is not None:
            # What is masked may hold anything: it must reach no softmax. (`where` keeps the memory format.)
            s, t = (torch.where(mask[:, None], x, 0.0) for x in (s, t))
        if form == "softmax":
            per_pixel = _softmax_form(s / temperature, t / temperature, convention)
        elif form == "sigmoid":
            per_pixel = _sigmoid_form(s / temperature, t / temperature)
        else:
            per_pixel = _regression_form(s, t, mask)
        if mask is not None:
            per_pixel = per_pixel.masked_fill(~mask, 0.0)
        if class_weights is not None:
            weights = torch.einsum("nchw,c->nhw", t.softmax(dim=1), class_weights.to(t.dtype))
            if mask is not None:
                weights = weights.masked_fill(~mask, 0.0)
            per_pixel, count = per_pixel * weights, weights.sum()
        total = per_pixel.sum()
    mean = mean_over_ranks(total, count)
    scale = {
        "paper": temperature**2,
        "authors": n * world_size()
        if is_joined()
        else n,  # of the batch; ranks have equal parts of it
        "ifvd": 1 / c,
        "cirkd": temperature**2,
        "mmrazor": temperature**2 * h * w,
    }
    return mean * scale[convention]


def _softmax_form(s: Tensor, t: Tensor, convention: str) -> Tensor:
    """(N, C, h, w) logits -> (N, h, w)."""
    log_s, log_t = F.log_softmax(s, dim=1), F.log_softmax(t, dim=1)
    if convention == "authors":
        # Differs from the paper: the teacher's entropy is not subtracted. The gradient is the same.
        return -(log_t.exp() * log_s).sum(dim=1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)


def _sigmoid_form(s: Tensor, t: Tensor) -> Tensor:
    """(N, C, h, w) logits -> (N, h, w); logarithms of sigmoids, so that confident predictions stay finite."""
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).sum(dim=1)


def _regression_form(s: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
    """(N, C, h, w) positive values -> (N, h, w)."""
    if mask is not None:
        # What a network says outside the mask may be anything; one is harmless to the logarithm and its gradient.
        s, t = (x.masked_fill(~mask[:, None], 1.0) for x in (s, t))
    if s.numel():
        of_s, of_t = s.detach().amin(), t.amin()
        require(
            ~(torch.minimum(of_s, of_t) <= 0),  # NaN passes, which the training step names
            lambda: (
                "form 'regression' compares logarithms of positive maps; the smallest value is "
                f"{float(of_s):.3g} (student) and {float(of_t):.3g} (teacher): take 'softmax' or 'sigmoid' for logits"
            ),
        )
    return (s.log() - t.log()).abs().mean(dim=1)


def _check_images_and_classes(student: Tensor, teacher: Tensor) -> None:
    check_map("student", student)
    check_map("teacher", teacher)
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must agree in batch and classes"
        )


def _check_arguments(
    temperature: float,
    form: str,
    convention: str,
    size: Sequence[int] | None,
    class_weights: Tensor | None = None,
) -> None:
    check_choice("form", form, FORMS)
    check_choice("convention", convention, CONVENTIONS)
    check_positive("temperature", temperature)
    if form != "softmax" and convention != "paper":
        raise ValueError(
            f"convention {convention!r} is a normalisation of form 'softmax'; form {form!r} takes 'paper' alone"
        )
    if form == "regression" and temperature != 1:
        raise ValueError(
            f"temperature is {temperature}; form 'regression' has no distribution to soften: leave it at 1"
        )
    if convention == "authors" and temperature != 1:
        raise ValueError(
            f"temperature is {temperature}, but convention 'authors' knows only 1: take 'paper' for another"
        )
    if class_weights is not None and form != "softmax":
        raise ValueError(f"class_weights are for form 'softmax'; form {form!r} has no classes")
    if size is None:
        return
    sides = isinstance(size, Sequence) and [isinstance(side, int) and side > 0 for side in size]
    if sides != [True, True]:
        raise ValueError(f"size is {size!r}; give a height and a width in pixels, or None")
    if form != "softmax":
        raise ValueError(f"size is for form 'softmax'; form {form!r} compares maps as they come")


class PixelWise(nn.Module):
    """`pixel_wise` with its arguments stored."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        form: str = "softmax",
        convention: str = "paper",
        size: Sequence[int] | None = None,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        if class_weights is not None:
            class_weights = as_class_weights(class_weights)
        _check_arguments(temperature, form, convention, size, class_weights)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.temperature = temperature
        self.form = form
        self.convention = convention
        self.size = None if size is None else (size[0], size[1])

    @property
    def wants(self) -> Wants:
        return Wants(size=self.size, softmax_alone=self.form == "softmax")

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return pixel_wise(
            student,
            teacher,
            temperature=self.temperature,
            mask=mask,
            form=self.form,
            convention=self.convention,
            size=self.size,
            class_weights=self.class_weights,
        )

    def extra_repr(self) -> str:
        form = "" if self.form == "softmax" else f"form={self.form!r}, "
        size = "" if self.size is None else f", size={self.size}"
        weights = "" if self.class_weights is None else f", class_weights={len(self.class_weights)}"
        return (
            f"temperature={self.temperature}, {form}convention={self.convention!r}{size}{weights}"
        )
