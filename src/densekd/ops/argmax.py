"""The class map of upsampled scores, computed without the upsampled scores.

Bilinear interpolation takes a mean of four neighbours with weights that are not negative. Where one class leads every
other class at all four neighbours, it leads everywhere between them. So only the cells on borders between classes are
interpolated, and there only the classes that can win.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from densekd.ops._bilinear import OTHER_SIZE, Axis, bands, is_exact, lerp
from densekd.ops.resize import resize_map

# A lead that rounding cannot undo, as a fraction of the largest score: each of the two interpolated values is off by
# at most four roundings of 2^-24.
LEAD = 2**-20
# The largest score must be above, so that no product falls below what float32 holds.
SMALLEST = 2.0**-100
MANY = 0.5  # the fraction of cells on borders above which it is faster to interpolate everything
AT_ONCE = 2**17  # the most interpolated values held at a time


@torch.no_grad()
def argmax_map(maps: Tensor, size: Sequence[int]) -> Tensor:
    """``resize_map(maps.float().contiguous(), size).argmax(1)``, pixel for pixel, in less time and memory.

    Equal scores go to the lowest class and NaN counts as the largest, as in `torch.argmax`. The scores of all classes
    are never held at full size: the CPU holds a few rows (except for maps whose two sides add up to 128 at most, and
    for three classes), other devices hold two classes.

    Args:
        maps: (N, K, h, w) scores of any float type.
        size: (H, W) of the class map, larger or smaller than the scores.

    Returns:
        (N, H, W) uint8, int16 above 255 classes.
    """
    maps = maps.float().contiguous()
    kind = torch.uint8 if maps.shape[1] <= 255 else torch.int16
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.max(1).indices.to(kind)
    if not is_exact(maps, size):
        return _by_classes(maps, size).to(kind)
    out = torch.empty(maps.shape[0], *size, dtype=kind)
    for scores, answer in zip(maps, out, strict=True):
        if not _by_cells(scores, answer):
            for rows, band in bands(scores[None], size):
                answer[rows] = band[0].max(0).indices
    return out


def _by_classes(maps: Tensor, size: Sequence[int]) -> Tensor:
    """`resize_map` on two classes at a time; int64. All classes at once where their number changes the rounding."""
    if maps.shape[1] <= 3 or (maps.device.type == "cpu" and sum(size) <= OTHER_SIZE):
        return resize_map(maps, size).max(1).indices
    best, answer = resize_map(maps[:, :2], size).max(1)
    for first in range(2, maps.shape[1], 2):
        value, index = resize_map(maps[:, first : first + 2], size).max(1)
        # The max over both treats ties and NaN as argmax does.
        best, newer = torch.stack([best, value]).max(0)
        answer = torch.where(newer.bool(), index + first, answer)
    return answer


def _by_cells(scores: Tensor, out: Tensor) -> bool:
    """Fill `out` (H, W) from finite (K, h, w); where that is not faster, leave `out` alone and return False.

    U: the uncertain cells. Corners: upper left, upper right, lower left, lower right.
    """
    classes, height, width = scores.shape
    largest = torch.stack(scores.aminmax()).abs().max().item()
    if classes == 1 or 4 * height * width > out.numel() or not SMALLEST < largest < float("inf"):
        return False
    lead = largest * LEAD
    best, top = scores.max(0)
    second = scores.scatter(0, top[None], -torch.inf).amax(0)
    y, x = Axis.make(height, out.shape[0]), Axis.make(width, out.shape[1])
    corners = [
        line[:, None] * width + place for line in (y.low, y.high) for place in (x.low, x.high)
    ]
    clear = torch.where(best - second > lead, top, -1).to(torch.int16).flatten()
    a, b, c, d = (clear[corner] for corner in corners)
    rows, columns = (~((a == b) & (a == c) & (a == d) & (a >= 0))).nonzero(as_tuple=True)
    if len(rows) > MANY * a.numel():
        return False
    # Certain cells have the class of any corner; the others are written over.
    torch.index_select(top.to(out.dtype).index_select(1, x.near), 0, y.near, out=out)
    at = torch.stack([corner[rows, columns] for corner in corners])  # (4, U)
    values = scores.flatten(1).index_select(1, at.flatten()).view(classes, *at.shape)
    possible = _possible(values, top.flatten()[at], lead)  # (K, U)
    number = possible.sum(0)
    y_places, x_places = y.places(), x.places()
    longest = len(y_places) * len(x_places)
    for k, cells_of_k in enumerate(torch.bincount(number).tolist()):
        if cells_of_k == 0:
            continue
        for cells in (number == k).nonzero()[:, 0].split(max(1, AT_ONCE // (k * longest))):
            # (k, u): the classes that are each cell's candidates, in rising order
            names = possible[:, cells].mT.nonzero()[:, 1].view(-1, k).mT.contiguous()
            some = values[:, :, cells].gather(0, names[:, None].expand(-1, 4, -1))
            line, place = y_places[:, rows[cells]], x_places[:, columns[cells]]
            winner = _winner(some, names.to(out.dtype), y, x, line, place)
            out.view(-1)[line[:, None] * out.shape[1] + place] = winner
    return True


def _possible(values: Tensor, top: Tensor, lead: float) -> Tensor:
    """(K, U): which classes may win inside of cells whose corners have these values (K, 4, U) and top classes (4, U).

    A class cannot win where another class, or the mean of two others, leads it at all four corners. Two classes that
    are on top of a corner are tried as leaders, since most borders lie between two classes.
    """
    first = other = top[0]
    for t in top[1:]:
        other = torch.where(t != first, t, other)
    f, o = (values.gather(0, t.expand(1, 4, -1))[0] for t in (first, other))
    values = values + lead
    possible = torch.ones_like(values[:, 0], dtype=torch.bool)
    for leader in (f, o, f / 2 + o / 2):
        led = values < leader
        led = led[:, :2] & led[:, 2:]  # `all` is slow over so short a side
        possible &= ~(led[:, 0] & led[:, 1])
    return possible


def _winner(values: Tensor, names: Tensor, y: Axis, x: Axis, line: Tensor, place: Tensor) -> Tensor:
    """Classes of u cells' pixels, (rows, columns, u), interpolated among each cell's own k candidates.

    Args:
        values: (k, 4, u) at the corners.
        names: (k, u), rising.
        line, place: (rows, u) and (columns, u): where the pixels are in the large map.
    """
    upper, lower = (
        lerp(a[:, None], b[:, None], x.w0[place], x.w1[place])
        for a, b in (values[:, :2].unbind(1), values[:, 2:].unbind(1))
    )
    scores = lerp(upper[:, None], lower[:, None], y.w0[line][:, None], y.w1[line][:, None])
    best, winner = scores[0], names[0].expand(scores.shape[1:])
    for score, name in zip(scores[1:], names[1:], strict=True):
        winner = torch.where(score > best, name, winner)
        best = torch.maximum(best, score)
    return winner
