"""Pair-wise distillation (Pa): the student's regions resemble each other as the teacher's do.

The way of a call: features -> nodes (pooled cells) -> cosines between connected nodes -> affinity -> mean squared
difference. Letters: N images, C channels, h×w the map, p×q the grid of nodes, n = p·q, K nodes a window holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.losses._checks import (
    check_choice,
    check_mask,
    check_pair,
    full_precision,
    no_autocast,
)

CONVENTIONS = ("paper", "authors", "authors2019", "cirkd")
POOLINGS = ("avg", "max")
AFFINITIES = ("cosine", "sigmoid", "softmax")

# A window of up to n / 32 nodes is one shifted product per offset; for a larger one the n×n matrix, one product of
# matrices, is faster (measured on CPU at n = 1024 and 4096, C = 128).
_SHIFTS_PAY = 32
# A node shorter than this has no direction: its cosines are (nearly) 0, and so is its gradient.
_ZERO_NORM = 1e-8

Range = int | float | tuple[int, int] | None


@dataclass(frozen=True)
class _Form:
    """The arguments of the term, checked when made."""

    granularity: int | float = 2
    pooling: str = "avg"
    connection_range: Range = None
    affinity: str = "cosine"
    norm_gradient: bool = True

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("affinity", self.affinity, AFFINITIES)
        g = self.granularity
        whole = isinstance(g, int) and not isinstance(g, bool) and g >= 1
        if not whole and not (isinstance(g, float) and 0 < g <= 1):
            raise ValueError(
                f"granularity is {g!r}; give a whole number of pixels from 1 up, or a float in (0, 1], "
                "the fraction of the map's side"
            )
        _check_range(self.connection_range)


def _check_range(value: Range) -> None:
    if value is None or (isinstance(value, float) and 0 < value <= 1):
        return
    sides = value if isinstance(value, tuple | list) else (value, value)
    odd = len(sides) == 2 and all(isinstance(s, int) and s >= 1 and s % 2 == 1 for s in sides)
    if not odd or max(sides) < 3:
        raise ValueError(
            f"connection_range is {value!r}; give None (all nodes), an odd window of at least 3 nodes "
            "(int, or height and width), or a float in (0, 1], the fraction of the nodes' grid"
        )


# What a convention fixes. A preset overrides the arguments it names.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Granularity stays free: the authors' 0.5 (2×2 or 3×3 nodes) is one setting of theirs.
    "authors": {
        "pooling": "max",
        "connection_range": None,
        "affinity": "cosine",
        "norm_gradient": False,
    },
    # Affinity stays free: their three variants.
    "authors2019": {"granularity": 1, "connection_range": None, "norm_gradient": True},
    "cirkd": {
        "granularity": 2,
        "pooling": "max",
        "connection_range": None,
        "affinity": "cosine",
        "norm_gradient": True,
    },
}


def _resolve(form: _Form, convention: str) -> _Form:
    """The preset's values over `form`; a value that is neither the default nor the preset's is a conflict."""
    check_choice("convention", convention, CONVENTIONS)
    default = _Form()
    for name, fixed in _PRESETS[convention].items():
        given = getattr(form, name)
        if given not in (getattr(default, name), fixed):
            raise ValueError(
                f"{name} is {given!r}, but convention {convention!r} fixes it to {fixed!r}: leave {name} out, "
                "or take convention='paper', where it is free"
            )
    return replace(form, **_PRESETS[convention])


def pair_wise(
    student: Tensor,
    teacher: Tensor,
    *,
    granularity: int | float = 2,
    pooling: str = "avg",
    connection_range: Range = None,
    affinity: str = "cosine",
    norm_gradient: bool = True,
    mask: Tensor | None = None,
    convention: str = "paper",
) -> Tensor:
    r"""Mean squared difference of two affinity graphs.

    .. math:: \frac{1}{N} \sum_{\text{images}} \frac{1}{|E|} \sum_{(i,j) \in E} (a_{ij}^s - a_{ij}^t)^2,
        \quad a_{ij} = \frac{f_i^\top f_j}{\|f_i\| \|f_j\|}

    with one node per β×β cell (cells cut by the border average what they have) and an edge (i, j) for each
    node j of the window around node i, i itself included. The mean is over each image's own edges, then over
    the images that have any: invariant to batch size.

    A convention is a preset that overrides the arguments it fixes:

    - ``"paper"``: none fixed.
    - ``"authors"`` (published code, master): max pooling, cosine, all nodes, norm without gradient.
      ``granularity`` stays what is given; theirs is 0.5.
    - ``"authors2019"``: no pooling (granularity 1), all nodes, norm with gradient; ``affinity`` free.
    - ``"cirkd"``: max pooling of 2×2 cells, cosine, all nodes, norm with gradient.

    An argument that differs both from its default and from the preset raises ValueError. All four are means,
    so masks enter each in the same way.

    Args:
        student: features (N, C, h, w).
        teacher: features (N, C', h, w), any channel count; receives no gradient.
        granularity: β. An int is the cell's side in pixels; a float in (0, 1] its fraction of the map's side,
            rounded down to at least 1 pixel (1 is one pixel, 1.0 the whole map).
        pooling: ``"avg"`` or ``"max"``.
        connection_range: α. None or 1.0 connects all nodes; an odd int or (height, width) is a window of
            nodes centred at each node and cut at the border; a float is the window's fraction of the grid, to
            the nearest odd number, at least 3.
        affinity: ``"cosine"``; ``"sigmoid"`` of it; ``"softmax"`` of it over the nodes that a node connects to.
        norm_gradient: whether the gradient passes through the norms.
        mask: (N, h, w) bool, True where a pixel counts. Cells pool valid pixels only; a node without any drops
            out, as does an image without nodes. All False gives 0 with a graph.
        convention: a preset, see above.

    Returns:
        A scalar, at least 0 (float32 for half-precision input).

    Example:
        >>> import torch
        >>> student = torch.randn(2, 24, 33, 41, requires_grad=True)
        >>> pair_wise(student, torch.randn(2, 64, 33, 41), granularity=4).backward()
    """
    form = _resolve(
        _Form(granularity, pooling, connection_range, affinity, norm_gradient), convention
    )
    check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)

    cell = _cell(form.granularity, student.shape[-2:])
    with no_autocast(student):
        s, valid = _nodes(full_precision(student), cell, form.pooling, mask)
        t, _ = _nodes(full_precision(teacher.detach()), cell, form.pooling, mask)
        s, t = _unit(s, form.norm_gradient), _unit(t, form.norm_gradient)

        window = _window(form.connection_range, s.shape[-2:])
        nodes = s.shape[-2] * s.shape[-1]
        if window is not None and window[0] * window[1] * _SHIFTS_PAY <= nodes:
            edges = _window_edges(valid, window, s)
            cos_s, cos_t = _window_cosines(s, window), _window_cosines(t, window)
        else:
            edges = _full_edges(valid, window, s)
            cos_s, cos_t = _full_cosines(s), _full_cosines(t)
        return _mean_squared_difference(
            _affinity(cos_s, edges, form.affinity), _affinity(cos_t, edges, form.affinity), edges
        )


def _cell(granularity: int | float, size: torch.Size) -> tuple[int, int]:
    """Height and width of a node's cell in pixels, never more than the map."""
    h, w = size
    if isinstance(granularity, float):
        return max(1, int(h * granularity)), max(1, int(w * granularity))
    return min(granularity, h), min(granularity, w)


def _nodes(
    x: Tensor, cell: tuple[int, int], pooling: str, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(N, C, h, w) -> nodes (N, C, p, q) and which of them are valid, (N, 1, p, q) bool or None for all."""
    pool = F.avg_pool2d if pooling == "avg" else F.max_pool2d
    if mask is None:
        return (x if cell == (1, 1) else pool(x, cell, cell, ceil_mode=True)), None
    counts = mask[:, None]  # (N, 1, h, w)
    share = F.avg_pool2d(counts.to(x.dtype), cell, cell, ceil_mode=True)  # valid share of each cell
    valid = share > 0
    if pooling == "avg":
        nodes = F.avg_pool2d(x.masked_fill(~counts, 0.0), cell, cell, ceil_mode=True)
        nodes = nodes / torch.where(valid, share, 1.0)
    else:
        nodes = F.max_pool2d(x.masked_fill(~counts, float("-inf")), cell, cell, ceil_mode=True)
        nodes = nodes.masked_fill(~valid, 0.0)
    return nodes, valid


def _unit(x: Tensor, norm_gradient: bool) -> Tensor:
    """Each node over its L2 norm. A zero node stays zero and gets a finite gradient."""
    square = x.square().sum(dim=1, keepdim=True)  # (N, 1, p, q)
    norm = torch.where(square > _ZERO_NORM**2, square, 1.0).sqrt()
    if not norm_gradient:
        # As the authors have it. Differs from their code for a zero node, whose gradient is 1e8 times larger there.
        norm = norm.detach() + 1e-8
    return x / norm


def _window(connection_range: Range, grid: torch.Size) -> tuple[int, int] | None:
    """The window's height and width in nodes, both odd; None where it connects all nodes."""
    if connection_range is None or connection_range == 1.0:
        return None
    p, q = grid
    if isinstance(connection_range, float):
        # To the nearest odd number. A window of one node would compare each node only with itself.
        window = tuple(max(3, 2 * round((connection_range * side - 1) / 2) + 1) for side in (p, q))
    elif isinstance(connection_range, int):
        window = (connection_range, connection_range)
    else:
        window = tuple(connection_range)
    # What reaches over the whole grid from everywhere need not be larger.
    window = (min(window[0], 2 * p - 1), min(window[1], 2 * q - 1))
    return None if window == (2 * p - 1, 2 * q - 1) else window


def _full_cosines(x: Tensor) -> Tensor:
    """Unit nodes (N, C, p, q) -> (N, n, n)."""
    flat = x.flatten(2)  # (N, C, n)
    return flat.transpose(1, 2) @ flat


def _full_edges(valid: Tensor | None, window: tuple[int, int] | None, x: Tensor) -> Tensor | None:
    """Which entries of the full matrix are edges: (N or 1, n, n) bool, None for all."""
    edges = None
    if window is not None:
        p, q = x.shape[-2:]
        rows = torch.arange(p, device=x.device).repeat_interleave(q)
        columns = torch.arange(q, device=x.device).repeat(p)
        near_rows = (rows[:, None] - rows).abs() <= window[0] // 2
        near_columns = (columns[:, None] - columns).abs() <= window[1] // 2
        edges = (near_rows & near_columns)[None]  # (1, n, n)
    if valid is not None:
        flat = valid.flatten(1)  # (N, n)
        both = flat[:, :, None] & flat[:, None, :]  # (N, n, n)
        edges = both if edges is None else both & edges
    return edges


def _shifts(x: Tensor, window: tuple[int, int]) -> list[Tensor]:
    """For each of the window's K offsets the map (N, C, p, q) of the neighbours there, 0 outside."""
    p, q = x.shape[-2:]
    kh, kw = window
    padded = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2))
    return [padded[..., i : i + p, j : j + q] for i in range(kh) for j in range(kw)]


def _window_cosines(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Unit nodes (N, C, p, q) -> cosines with the K nodes of the window, (N, n, K)."""
    cosines = [(x * neighbour).sum(dim=1).flatten(1) for neighbour in _shifts(x, window)]
    return torch.stack(cosines, dim=2)


def _window_edges(valid: Tensor | None, window: tuple[int, int], x: Tensor) -> Tensor:
    """Which of the window's K nodes are there and valid: (N or 1, n, K) bool."""
    if valid is None:
        valid = x.new_ones(1, 1, *x.shape[-2:], dtype=torch.bool)
    edges = [(valid & neighbour).flatten(1) for neighbour in _shifts(valid, window)]
    return torch.stack(edges, dim=2)


def _affinity(cosines: Tensor, edges: Tensor | None, kind: str) -> Tensor:
    if kind == "sigmoid":
        return cosines.sigmoid()
    if kind == "softmax":
        if edges is not None:
            # Far below any cosine, yet finite: a row without edges must not become NaN.
            cosines = cosines.masked_fill(~edges, -1e4)
        return cosines.softmax(dim=-1)
    return cosines


def _mean_squared_difference(student: Tensor, teacher: Tensor, edges: Tensor | None) -> Tensor:
    """Mean over each image's edges, then over the images that have any."""
    square = (student - teacher).square()  # (N, n, n or K)
    if edges is None:
        return square.mean()
    count = edges.sum(dim=(1, 2)).expand(square.shape[0])
    per_image = square.masked_fill(~edges, 0.0).sum(dim=(1, 2)) / count.clamp(min=1)
    return per_image.sum() / (count > 0).sum().clamp(min=1)


class PairWise(nn.Module):
    """`pair_wise` with its arguments stored."""

    def __init__(
        self,
        *,
        granularity: int | float = 2,
        pooling: str = "avg",
        connection_range: Range = None,
        affinity: str = "cosine",
        norm_gradient: bool = True,
        convention: str = "paper",
    ) -> None:
        super().__init__()
        if isinstance(connection_range, list):  # as YAML gives it
            rows, columns = connection_range
            connection_range = (rows, columns)
        form = _Form(granularity, pooling, connection_range, affinity, norm_gradient)
        _resolve(form, convention)
        self.granularity = granularity
        self.pooling = pooling
        self.connection_range = connection_range
        self.affinity = affinity
        self.norm_gradient = norm_gradient
        self.convention = convention

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        return pair_wise(
            student,
            teacher,
            granularity=self.granularity,
            pooling=self.pooling,
            connection_range=self.connection_range,
            affinity=self.affinity,
            norm_gradient=self.norm_gradient,
            mask=mask,
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        form = _resolve(
            _Form(
                self.granularity,
                self.pooling,
                self.connection_range,
                self.affinity,
                self.norm_gradient,
            ),
            self.convention,
        )
        return (
            f"granularity={form.granularity}, pooling={form.pooling!r}, "
            f"connection_range={form.connection_range}, affinity={form.affinity!r}, "
            f"norm_gradient={form.norm_gradient}, convention={self.convention!r}"
        )
