"""Masked means, unit vectors and pooling that several losses share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.losses._checks import check_map, check_pair
from densekd.ops.collectives import all_reduce_sum, is_joined, mean_over_ranks, sum_over_ranks
from densekd.ops.resize import resize_labels

# What a softmax gets in place of a masked logit: its probability is exactly 0, and differences of two stay finite.
NEVER = -1e30


def check_widths(student: Tensor, teacher: Tensor) -> None:
    """Two features of one size and one width; the message names the remedy."""
    check_map("student", student)
    check_map("teacher", teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student has {student.shape[1]} channels and teacher {teacher.shape[1]}: put a 1x1 convolution "
            "on the student's feature first"
        )
    check_pair(student, teacher, same_channels=True)


def check_side(granularity: int) -> None:
    if not isinstance(granularity, int) or granularity < 1:
        raise ValueError(
            f"granularity is {granularity!r}; it must be a whole number of pixels, at least 1: a cell's side"
        )


def fill(x: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    """(N, C, h, w) with `value` where the mask (N, h, w) is False; what stood there may have been infinite."""
    return x if mask is None else x.masked_fill(~mask[:, None], value)


def mean_of_pixels(per_pixel: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (N, h, w) over the valid pixels of the batch; 0 with a graph where there is none.

    Within `densekd.ops.collectives.over_ranks` the batch is that of all ranks, as with `mean_of_images`.
    """
    if mask is None:
        if not is_joined():
            return per_pixel.mean()
        return mean_over_ranks(per_pixel.sum(), per_pixel.numel())
    return mean_over_ranks(per_pixel.masked_fill(~mask, 0.0).sum(), mask.sum())


def mean_of_images(per_image: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (N,) over the images that have a valid pixel; 0 with a graph where there is none."""
    if mask is None:
        return mean_of_pixels(per_image, None)
    return mean_of_pixels(per_image, mask.flatten(1).any(dim=1))


def moments_over_ranks(
    a: Tensor, b: Tensor, valid: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Sums about the means of all ranks, for losses that correlate over a batch within `over_ranks`.

    They are float64, since what is made of them is a difference of near numbers.

    Args:
        a, b: (C, P); where `valid` is False they are 0.
        valid: (P,) bool, None for all.

    Returns:
        the number of valid places of all ranks, at least 1; and (C,) each, the sums of a², b² and a · b.
    """
    a, b = a.double(), b.double()
    count = a.new_tensor(a.shape[1]) if valid is None else valid.sum().double()
    sums = torch.stack([a.detach().sum(1), b.detach().sum(1), count.expand(len(a))])
    of_a, of_b, counts = all_reduce_sum(sums)
    count = counts[0].clamp(min=1)
    # The means have no gradient: over all ranks their part in these sums is 0.
    a, b = a - (of_a / count)[:, None], b - (of_b / count)[:, None]
    if valid is not None:
        a, b = a.masked_fill(~valid, 0.0), b.masked_fill(~valid, 0.0)
    moments = torch.stack([a.square().sum(1), b.square().sum(1), (a * b).sum(1)])
    squares_a, squares_b, products = sum_over_ranks(moments)
    return count, (squares_a, squares_b, products)


def unit(x: Tensor, dim: int, eps: float = 1e-12) -> Tensor:
    """x at length 1 along `dim`. The eps inside the root keeps value and gradient of a zero vector finite."""
    return x * (x.square().sum(dim=dim, keepdim=True) + eps).rsqrt()


def pool_cells(x: Tensor, side: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Averages of cells over their valid pixels, and which cells have any. A cut cell averages what it has.

    (N, C, h, w) -> (N, C, ⌈h/side⌉, ⌈w/side⌉); the mask (N, h, w) -> (N, ⌈h/side⌉, ⌈w/side⌉).
    """
    x = fill(x, mask)
    if side == 1:
        return x, mask
    pooled = F.avg_pool2d(x, side, ceil_mode=True)
    if mask is None:
        return pooled, None
    share = F.avg_pool2d(mask[:, None].to(x.dtype), side, ceil_mode=True)
    valid = share > 0
    return pooled / share.where(valid, torch.ones_like(share)), valid[:, 0]


def labels_at(labels: Tensor | None, x: Tensor) -> Tensor:
    """Class labels (N, H, W) at the size of a map (N, C, h, w), nearest on the grid of `resize_map`."""
    return resize_labels(check_labels(labels, x), x.shape[-2:])


def check_labels(labels: Tensor | None, x: Tensor) -> Tensor:
    """The labels, which are there and fit the batch."""
    if labels is None:
        raise ValueError(
            "labels are missing: this loss needs the class of each pixel, whole numbers (N, H, W); an image without "
            "labels has ignore_index everywhere"
        )
    if labels.ndim != 3 or labels.shape[0] != x.shape[0] or labels.is_floating_point():
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected whole numbers (N, H, W) with N = "
            f"{x.shape[0]}, the class of each pixel"
        )
    return labels
