"""The supervised terms of segmentation. Logits are resized to the labels, never the labels to the logits.

Large maps are resized, compared and differentiated some rows at a time (`densekd.losses._upsampled`): the logits of all
classes never exist at the labels' size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import as_class_weights, check_class_weights, check_map, full_precision
from densekd.losses._upsampled import bands_pay, cross_entropy_map, cross_entropy_sum
from densekd.ops.collectives import (
    count_over_ranks,
    is_joined,
    mean_over_ranks,
    smallest_over_ranks,
)
from densekd.ops.resize import resize_map


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy over the valid pixels, at the labels' size.

    With class weights it is the weighted mean, over the sum of the valid pixels' weights (as torch has it).
    Differs from `torch.nn.functional.cross_entropy`: labels that are all ignored give 0 with a graph, not NaN.

    Args:
        logits: (N, C, h, w), resized bilinearly (align_corners) to the labels where sizes differ.
        target: (N, H, W) int64 in [0, C) or ignore_index.
        ignore_index: the label that does not count.
        class_weights: (C,), on the logits' device.
        label_smoothing: in [0, 1).

    Returns:
        A scalar, at least 0 (float32 for half-precision input).
    """
    _check_smoothing(label_smoothing)
    _check_target(logits, target, class_weights)
    logits, size = full_precision(logits), (target.shape[1], target.shape[2])
    if class_weights is not None:
        class_weights = class_weights.to(logits.dtype)
    if bands_pay(logits, size):
        total = cross_entropy_sum(
            logits,
            target,
            ignore_index=ignore_index,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
        )
    else:
        total = F.cross_entropy(
            resize_map(logits, size),
            target,
            weight=class_weights,
            ignore_index=ignore_index,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    valid = target != ignore_index
    if class_weights is None:
        return mean_over_ranks(total, valid.sum())
    weight = class_weights[target.where(valid, 0)].masked_fill(~valid, 0.0).sum()
    return mean_over_ranks(total, weight)


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
    ignore_index: int = 255,
) -> Tensor:
    """Online hard example mining: mean cross-entropy over the pixels that the network is not confident of.

    Kept are the valid pixels whose true class has a probability below `threshold`, and in any case the
    hardest `min_kept` of the batch's valid pixels.

    Differs from the authors' code: `min_kept` is a fraction, so that it means the same for every crop and
    batch size (theirs is a count, 100 000 of the 2 million pixels of a batch, at 1/8 of their resolution).

    Args:
        logits: (N, C, h, w), resized bilinearly to the labels where sizes differ.
        target: (N, H, W) int64 in [0, C) or ignore_index.
        threshold: in (0, 1].
        min_kept: fraction of the batch's valid pixels, in [0, 1]; 1 is `cross_entropy`.
        ignore_index: the label that does not count.
    """
    _check_ohem(threshold, min_kept)
    _check_target(logits, target, None)
    logits, size = full_precision(logits), (target.shape[1], target.shape[2])
    in_bands = bands_pay(logits, size)
    if in_bands:  # once without a graph to see what is hard, once more for that alone
        loss = cross_entropy_map(logits, target, ignore_index=ignore_index)  # (N, H, W)
    else:
        logits = resize_map(logits, size)
        loss = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    valid = target != ignore_index
    # The true class's probability; ignored pixels sort behind all others.
    probability = (-loss.detach()).exp().masked_fill(~valid, 2.0)
    hardest = (count_over_ranks(valid.sum()) * min_kept).ceil().long()
    if is_joined():
        kth = smallest_over_ranks(probability.flatten(), hardest.clamp(min=1))
    else:
        # A sort, and a gather whose index stays on the device: kthvalue would need the count on the host.
        kth = probability.flatten().sort().values.gather(0, (hardest - 1).clamp(min=0).view(1))
    kept = valid & ((probability < threshold) | ((probability <= kth) & (hardest > 0)))
    if in_bands:
        hard = target.masked_fill(~kept, ignore_index)
        total = cross_entropy_sum(logits, hard, ignore_index=ignore_index)
    else:
        total = loss.masked_fill(~kept, 0.0).sum()
    return mean_over_ranks(total, kept.sum())


def segmentation_loss(
    main: Tensor,
    aux: Tensor | None,
    target: Tensor,
    *,
    aux_weight: float = 0.4,
    term: Callable[..., Tensor] = cross_entropy,
    **options: object,
) -> Tensor:
    """term(main) + aux_weight · term(aux): the supervised loss of networks with an auxiliary head.

    Args:
        main: logits (N, C, h, w).
        aux: logits of the auxiliary head, any map size, or None for a network without one.
        target: (N, H, W) int64.
        aux_weight: 0.4 in the paper.
        term: `cross_entropy` or `ohem_cross_entropy`.
        options: passed on to `term`.
    """
    loss = term(main, target, **options)
    if aux is None or aux_weight == 0:
        return loss
    return loss + aux_weight * term(aux, target, **options)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")


def _check_ohem(threshold: float, min_kept: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it is a probability, in (0, 1]")
    if not 0 <= min_kept <= 1:
        raise ValueError(
            f"min_kept is {min_kept}; it is a fraction of the valid pixels, in [0, 1]. "
            "For a count, divide it by the pixels of a batch"
        )


def _check_target(logits: Tensor, target: Tensor, class_weights: Tensor | None) -> None:
    check_map("logits", logits)
    if target.dtype != torch.int64 or target.ndim != 3 or target.shape[0] != logits.shape[0]:
        raise ValueError(
            f"target is {target.dtype} of shape {tuple(target.shape)}; expected torch.int64 class indices "
            f"(N, H, W) with N = {logits.shape[0]}"
        )
    check_class_weights(class_weights, logits.shape[1])


class CrossEntropy(nn.Module):
    """`cross_entropy` with its arguments stored (class weights as a buffer that is not saved)."""

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        ignore_index: int = 255,
        class_weights: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        _check_smoothing(label_smoothing)
        if class_weights is not None:
            class_weights = as_class_weights(class_weights)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            logits,
            target,
            ignore_index=self.ignore_index,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        weights = None if self.class_weights is None else len(self.class_weights)
        return (
            f"ignore_index={self.ignore_index}, class_weights={weights}, "
            f"label_smoothing={self.label_smoothing}"
        )


class OhemCrossEntropy(nn.Module):
    """`ohem_cross_entropy` with its arguments stored."""

    def __init__(
        self, *, threshold: float = 0.7, min_kept: float = 1 / 16, ignore_index: int = 255
    ) -> None:
        super().__init__()
        _check_ohem(threshold, min_kept)
        self.threshold = threshold
        self.min_kept = min_kept
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return ohem_cross_entropy(
            logits,
            target,
            threshold=self.threshold,
            min_kept=self.min_kept,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        return (
            f"threshold={self.threshold}, min_kept={self.min_kept}, "
            f"ignore_index={self.ignore_index}"
        )


class SegmentationLoss(nn.Module):
    """`segmentation_loss` with a `CrossEntropy` or `OhemCrossEntropy` and the auxiliary weight stored."""

    def __init__(self, term: nn.Module | None = None, *, aux_weight: float = 0.4) -> None:
        super().__init__()
        self.term = CrossEntropy() if term is None else term
        self.aux_weight = aux_weight

    def forward(self, main: Tensor, aux: Tensor | None, target: Tensor) -> Tensor:
        return segmentation_loss(main, aux, target, aux_weight=self.aux_weight, term=self.term)

    def extra_repr(self) -> str:
        return f"aux_weight={self.aux_weight}"
