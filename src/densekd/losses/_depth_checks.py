"""What every loss on depth asks of its arguments.

Invalid pixels are left out by indexing: a product would keep their NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.losses._checks import check_map, check_mask, full_precision
from densekd.ops.collectives import mean_over_ranks


def valid_pixels(target: Tensor, mask: Tensor | None) -> Tensor:
    """(N, H, W) bool: where the mask says so, if there is one, and the target is finite and above 0."""
    known = (target[:, 0] > 0) & target[:, 0].isfinite()
    return known if mask is None else known & mask


def check_depth(prediction: Tensor, target: Tensor, mask: Tensor | None) -> None:
    for name, x in (("prediction", prediction), ("target", target)):
        check_map(name, x)
        if x.shape[1] != 1:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; expected depth (N, 1, H, W) in metres: decode the logits of depth "
                "bins first, with densekd.ops.depth_bins.bins_to_depth"
            )
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in size: resize the "
            "prediction with densekd.ops.resize.resize_map"
        )
    check_mask(mask, target)


def valid_values(
    prediction: Tensor, target: Tensor, mask: Tensor | None, *, positive: bool
) -> tuple[Tensor, Tensor]:
    """The valid pixels of both as flat float tensors, checked; `positive` where logarithms are to be taken."""
    check_depth(prediction, target, mask)
    valid = valid_pixels(target, mask)
    p = full_precision(prediction)[:, 0][valid]
    t = full_precision(target)[:, 0][valid]
    # NaN passes: a network that diverged is named by the training step.
    if positive and bool((p <= 0).any()):
        raise ValueError(
            f"the prediction goes down to {float(p.min()):.3g} m; this loss takes logarithms of metres: bound the "
            "network's depth above 0, as depth_timm and vnl do"
        )
    return p, t


def mean_or_zero(values: Tensor) -> Tensor:
    """The mean of a flat tensor (within `over_ranks`, of all ranks' ones); 0 with a graph where it is empty."""
    return mean_over_ranks(values.sum(), values.numel())


def check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; expected a fraction in [0, 1)")


def check_intrinsics(intrinsics: Tensor, prediction: Tensor, used: Tensor) -> None:
    """(N, 4), finite and with positive focal lengths for the images in `used`, (N,) bool."""
    n = prediction.shape[0]
    if tuple(intrinsics.shape) != (n, 4):
        raise ValueError(
            f"intrinsics have shape {tuple(intrinsics.shape)}; expected ({n}, 4): fx, fy, cx, cy in pixels, one row "
            "an image"
        )
    rows = intrinsics[used]
    if not bool(rows.isfinite().all()) or not bool((rows[:, :2] > 0).all()):
        bad = torch.nonzero(used)[:, 0][~(rows.isfinite().all(1) & (rows[:, :2] > 0).all(1))]
        raise ValueError(
            f"image {int(bad[0])} of the batch has intrinsics {intrinsics[bad[0]].tolist()} (NaN: unknown); virtual "
            "normals need fx, fy, cx, cy: give the data set its camera (its option `intrinsics`), or leave "
            "virtual_normal out of the losses"
        )
