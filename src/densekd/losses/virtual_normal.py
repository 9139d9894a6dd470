"""Virtual normals: triples of points far apart span planes, whose normals must agree.

Letters: N images, H×W the map, S triples an image. Shapes do not depend on how many pixels are valid or how many
triples are kept: a device need not be asked for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from densekd.losses._checks import full_precision
from densekd.losses._depth_checks import (
    check_depth,
    check_fraction,
    check_intrinsics,
    mean_or_zero,
    valid_pixels,
)
from densekd.ops.collectives import (
    count_over_ranks,
    is_joined,
    mean_over_ranks,
    smallest_over_ranks,
)

# Under a root and in m⁴, the square of an area: keeps the gradient of a degenerate predicted triangle finite. Triangles
# that are kept have areas well above its root.
_EPS = 1e-12


def virtual_normal(
    prediction: Tensor,
    target: Tensor,
    intrinsics: Tensor,
    *,
    mask: Tensor | None = None,
    samples: int | float = 0.15,
    max_cosine: float = 0.867,
    min_distance: float = 0.01,
    drop: float = 0.25,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mean L1 distance of unit normals of triangles in space, the same three pixels in both depth maps.

    .. math:: \frac{1}{M} \sum_{m} \| n_m(p) - n_m(t) \|_1

    Pixels are lifted to points ((u - cx) z / fx, (v - cy) z / fy, z). Triples are drawn at random, with replacement,
    among the valid pixels of each image. Two rules, both judged on the target's points, leave out triangles whose
    normal is noise: no two sides may be within about 30° of one line (cosine above `max_cosine`), and no side may be
    shorter than `min_distance`. The smallest losses are then dropped (`drop`).

    A common factor on the prediction costs nothing: the normals stay. Add a loss on the depth itself.

    Source: Yin et al., *Enforcing geometric constraints of virtual normal for depth prediction* (ICCV 2019), section
    3.2, and its code (cosine 0.867, 15 % of the pixels, the smallest 25 % dropped, over the whole batch). Differs from
    the code: distance is Euclidean and in metres (there a triple is near if in each of x, y and z some side is shorter
    than 0.005 of a depth divided by 10); draws come from valid pixels only; the intrinsics are each image's own.

    Args:
        prediction: (N, 1, H, W) metres.
        target: (N, 1, H, W) metres; 0 and NaN do not count.
        intrinsics: (N, 4) fx, fy, cx, cy in pixels of these maps.
        mask: (N, H, W) bool, True where a pixel counts. No valid pixel, or no triple kept, gives 0 with a graph.
        samples: triples drawn an image: a number, or a float in (0, 1], the fraction of H·W.
        max_cosine: in (0, 1]; 1 keeps every triangle that is one.
        min_distance: metres; 0 keeps all.
        drop: fraction of the kept triples, those of smallest loss, that does not count; in [0, 1).
        generator: on the maps' device, for draws that can be repeated; None takes torch's own.

    Returns:
        A scalar in [0, 2√3] (float32 for half-precision input).

    Raises:
        ValueError: shapes that do not fit, intrinsics unknown (NaN) for an image with valid depth, bad arguments.

    Example:
        >>> depth = 1 + torch.rand(2, 1, 48, 64)
        >>> camera = torch.tensor([[58.0, 58.0, 32.0, 24.0]]).repeat(2, 1)
        >>> prediction = torch.full_like(depth, 1.5, requires_grad=True)
        >>> virtual_normal(prediction, depth, camera, samples=1000).backward()
    """
    _check_arguments(samples, max_cosine, min_distance, drop)
    check_depth(prediction, target, mask)
    valid = valid_pixels(target, mask)
    counts = valid.flatten(1).sum(1)  # (N,)
    used = counts > 0
    check_intrinsics(intrinsics, prediction, used)

    n, _, height, width = target.shape
    fraction = isinstance(samples, float) and samples <= 1
    each = max(1, round(samples * height * width)) if fraction else int(samples)
    drawn = _draw(n, each, target.device, generator)
    # In integers, exact: not every device has float64 (Apple's MPS), and float32 rounds some products up. Draws are
    # multiples of 2^-24 below 1.
    within = (drawn * 2**24).long() * counts[:, None, None] >> 24
    # Of the k-th valid pixel of an image, its number: the first at which k + 1 are counted. An image without any has
    # triples of its last pixel, which do not count.
    seen = valid.flatten(1).cumsum(1)
    number = torch.searchsorted(seen, within.flatten(1) + 1).clamp(max=height * width - 1)
    image = torch.arange(n, device=target.device)[:, None].expand_as(number)

    known = torch.where(used[:, None], full_precision(intrinsics), 1.0)
    rays = _rays(known, image, number // width, number % width)  # (N, 3S, 3)
    place = image * (height * width) + number
    depth_p, depth_t = (full_precision(x).flatten()[place] for x in (prediction, target))
    kept = (
        _spans_a_plane(_triples(depth_t, rays), max_cosine, min_distance)
        & used[image[:, ::3]].flatten()
    )
    # What the network says where a triple does not count may be anything, and must not reach the gradient.
    counted = kept.repeat_interleave(3, output_size=3 * len(kept)).view_as(number)
    points_p, points_t = (_triples(torch.where(counted, x, 1.0), rays) for x in (depth_p, depth_t))
    losses = (_normals(points_p) - _normals(points_t)).abs().sum(-1)  # (N · S,)
    if drop == 0:
        return mean_or_zero(losses, kept)
    if is_joined():
        return _mean_of_largest(losses, kept, drop)
    # What does not count comes first.
    ordered = losses.where(kept, -1.0).sort().values
    total = kept.sum()
    first = len(losses) - total + _dropped(total, drop)
    return mean_or_zero(ordered, torch.arange(len(losses), device=losses.device) >= first)


def _dropped(total: Tensor, drop: float) -> Tensor:
    """Of so many triples, how many are left out. In integers, as the draws."""
    return total * math.ceil(drop * 2**36) >> 36


def _triples(depth: Tensor, rays: Tensor) -> Tensor:
    """(N, 3S) depths and (N, 3S, 3) rays -> (N · S, 3, 3) corners."""
    return (depth[..., None] * rays).view(-1, 3, 3)


def _draw(n: int, each: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(N, each, 3) in [0, 1)."""
    return torch.rand(n, each, 3, device=device, generator=generator)


def _mean_of_largest(losses: Tensor, kept: Tensor, drop: float) -> Tensor:
    """The mean of the kept ones of (M,) losses of all ranks without the smallest of them."""
    total = count_over_ranks(kept.sum())
    dropped = _dropped(total, drop)
    # Where none is dropped the limit is the smallest of them, which then counts whole.
    limit = smallest_over_ranks(losses.where(kept, torch.inf), dropped.clamp(min=1))
    above, ties = kept & (losses > limit), kept & (losses == limit)
    everyone = count_over_ranks(torch.stack([above.sum(), ties.sum()]))
    # Of those at the limit, how many in one count.
    share = (total - dropped - everyone[0]) / everyone[1].clamp(min=1)
    part = losses.masked_fill(~above, 0.0).sum() + share * losses.masked_fill(~ties, 0.0).sum()
    return mean_over_ranks(part, above.sum() + share * ties.sum())


def _rays(intrinsics: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(..., 3): the point at depth 1 behind each pixel."""
    fx, fy, cx, cy = intrinsics[image].unbind(-1)
    return torch.stack([(column - cx) / fx, (row - cy) / fy, torch.ones_like(fx)], dim=-1)


def _spans_a_plane(points: Tensor, max_cosine: float, min_distance: float) -> Tensor:
    """(M, 3, 3) corners -> (M,) bool."""
    a, b, c = points.unbind(1)
    sides = torch.stack([b - a, c - a, c - b], dim=1)
    lengths = sides.norm(dim=-1)  # (M, 3)
    unit = sides / lengths.clamp(min=1e-12)[..., None]
    cosines = torch.stack([(unit[:, i] * unit[:, j]).sum(-1) for i, j in ((0, 1), (0, 2), (1, 2))])
    return (
        (cosines.abs().amax(0) <= max_cosine)
        & (lengths.amin(1) >= min_distance)
        & (lengths.amin(1) > 0)
    )


def _normals(points: Tensor) -> Tensor:
    """(M, 3, 3) corners -> (M, 3) unit normals."""
    a, b, c = points.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    return normal / (normal.square().sum(-1, keepdim=True) + _EPS).sqrt()


def _check_arguments(
    samples: int | float, max_cosine: float, min_distance: float, drop: float
) -> None:
    whole = float(samples).is_integer() and samples >= 1  # a settings file may say 20000.0
    if isinstance(samples, bool) or not (whole or 0 < samples < 1):
        raise ValueError(
            f"samples is {samples!r}; give a number of triples from 1 up, or a float in (0, 1], the fraction "
            "of the pixels"
        )
    if not 0 < max_cosine <= 1:
        raise ValueError(f"max_cosine is {max_cosine}; expected a number in (0, 1]")
    if not min_distance >= 0:
        raise ValueError(f"min_distance is {min_distance}; expected metres, 0 or more")
    check_fraction("drop", drop)


class VirtualNormal(nn.Module):
    """`virtual_normal` with its arguments stored; draws by torch's own generator."""

    def __init__(
        self,
        *,
        samples: int | float = 0.15,
        max_cosine: float = 0.867,
        min_distance: float = 0.01,
        drop: float = 0.25,
    ) -> None:
        super().__init__()
        _check_arguments(samples, max_cosine, min_distance, drop)
        self.samples = samples
        self.max_cosine = max_cosine
        self.min_distance = min_distance
        self.drop = drop

    def forward(
        self, prediction: Tensor, target: Tensor, intrinsics: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        return virtual_normal(
            prediction,
            target,
            intrinsics,
            mask=mask,
            samples=self.samples,
            max_cosine=self.max_cosine,
            min_distance=self.min_distance,
            drop=self.drop,
        )

    def extra_repr(self) -> str:
        return (
            f"samples={self.samples}, max_cosine={self.max_cosine}, min_distance={self.min_distance}, "
            f"drop={self.drop}"
        )
