"""What every loss on depth asks of its arguments.

Invalid pixels are replaced, not taken out: how many there are is known on the device alone, and a product would keep
their NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.losses._checks import check_map, check_mask, full_precision
from densekd.ops.collectives import mean_over_ranks
from densekd.ops.conditions import require


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Both as (N, H, W) floats, 1 where a pixel is not valid, and which are, (N, H, W) bool.

    Raises:
        ValueError: the shapes do not fit, or a valid prediction is not above 0 where logarithms are to be taken
            (`positive`).
    """
    check_depth(prediction, target, mask)
    valid = valid_pixels(target, mask)
    p, t = (torch.where(valid, full_precision(x)[:, 0], 1.0) for x in (prediction, target))
    if positive and p.numel():
        smallest = p.detach().amin()
        # NaN passes: a network that diverged is named by the training step.
        require(
            ~(smallest <= 0),
            lambda: (
                f"the prediction goes down to {float(smallest):.3g} m; this loss takes logarithms of metres: bound the "
                "network's depth above 0, as depth_timm and vnl do"
            ),
        )
    return p, t, valid


def count_is_at_hand(x: Tensor) -> bool:
    """Whether to take the valid pixels out where that saves much (many bins, and few pixels of a lidar): on the CPU.

    Elsewhere the host would wait for their number.
    """
    return x.device.type == "cpu"


def mean_or_zero(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the valid ones (within `over_ranks`, of all ranks' ones); 0 with a graph where there are none."""
    return mean_over_ranks(values.masked_fill(~valid, 0.0).sum(), valid.sum())


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
    bad = used & ~(intrinsics.isfinite().all(1) & (intrinsics[:, :2] > 0).all(1))

    def message() -> str:
        first = int(bad.long().argmax())
        return (
            f"image {first} of the batch has intrinsics {intrinsics[first].tolist()} (NaN: unknown); virtual normals "
            "need fx, fy, cx, cy: give the data set its camera (its option `intrinsics`), or leave virtual_normal out "
            "of the losses"
        )

    require(~bad.any(), message)
