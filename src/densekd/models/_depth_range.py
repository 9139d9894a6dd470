"""Maps one unbounded channel to a depth inside a range."""

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
        UserError: a regression network (one class) has no range, or the range is not valid.
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
    """Any real number -> metres: a sigmoid places the depth between the logarithms of the range's ends.

    0 gives the geometric mean of the range. Equal steps of x are (in the middle) equal factors of depth, so near and
    far learn alike. The result is float32 for any input: half precision has only three digits of a depth.
    """
    low, high = (math.log(v) for v in depth_range)
    return (low + x.float().sigmoid() * (high - low)).exp()
