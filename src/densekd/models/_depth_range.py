"""From one unbounded channel to a depth inside a range."""

from __future__ import annotations

import math

from torch import Tensor

from densekd.errors import UserError
from densekd.ops.depth_bins import check_range


def check_depth_range(
    num_classes: int, depth_range: tuple[float, float] | None, who: str
) -> tuple[float, float] | None:
    """The range as floats.

    Raises:
        UserError: a regression network (one class) without a range, or a range that is none.
    """
    if depth_range is None:
        if num_classes == 1:
            raise UserError(
                f"{who} with num_classes 1 gives metres and needs depth_range=(nearest, farthest), as in (0.5, 10)"
            )
        return None
    low, high = (float(v) for v in depth_range)
    try:
        check_range((low, high))
    except ValueError as error:
        raise UserError(f"{who}: {error}") from None
    return low, high


def bounded_depth(x: Tensor, depth_range: tuple[float, float]) -> Tensor:
    """Any real -> metres: the sigmoid's place between the logarithms of the range.

    0 gives the geometric mean of the range. Equal steps of x are (in the middle) equal factors of depth, so near and
    far learn alike. Float32 whatever comes in: half precision knows only three digits of a depth.
    """
    low, high = (math.log(v) for v in depth_range)
    return (low + x.float().sigmoid() * (high - low)).exp()
