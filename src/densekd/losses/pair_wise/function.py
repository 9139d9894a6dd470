"""Pair-wise distillation (Pa): the student's regions resemble each other as the teacher's do.

The way of a call: features -> nodes (pooled cells) -> cosines between connected nodes -> affinity -> mean squared
difference; the last three in `_pair_wise_squares`. Letters: N images, C channels, h×w the map, p×q the grid of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from densekd.losses._checks import (
    check_choice,
    check_map,
    check_mask,
    check_pair,
    full_precision,
    no_autocast,
)
from densekd.losses.pair_wise.squares import count_edges, squared_differences

CONVENTIONS = ("paper", "authors", "authors2019", "cirkd")
POOLINGS = ("avg", "max")
AFFINITIES = ("cosine", "sigmoid", "softmax")

# Pixels of a cell up to which it is averaged pixel by pixel; of larger ones by PyTorch's pooling.
_FEW = 16

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
    pooled_teacher: bool = False,
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
        pooled_teacher: ``teacher`` is already nodes (N, C', p, q), as `pool_nodes` makes them of its map with the
            same granularity, pooling, mask and convention; any floating precision.

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
    cell = _cell(form.granularity, student.shape[-2:])
    if pooled_teacher:
        _check_nodes(student, teacher, cell)
    else:
        check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)

    with no_autocast(student):
        s, valid = _nodes(full_precision(student), cell, form.pooling, mask)
        t = full_precision(teacher.detach()).to(s.dtype)
        if not pooled_teacher:
            t, _ = _nodes(t, cell, form.pooling, mask)
        elif valid is not None:
            t = t.masked_fill(~valid, 0.0)  # whatever they hold: the forms rely on zeros there
        window = _window(form.connection_range, s.shape[-2:])
        squares = squared_differences(s, t, valid, window, form.affinity, form.norm_gradient)
        edges = count_edges(valid, window, s)
        # The mean over each image's edges, then over the images that have any.
        per_image = squares / edges.clamp(min=1)  # (N,)
        return per_image.sum() / (edges > 0).sum().clamp(min=1)


def pool_nodes(
    features: Tensor,
    *,
    granularity: int | float = 2,
    pooling: str = "avg",
    mask: Tensor | None = None,
    convention: str = "paper",
) -> Tensor:
    """The nodes of a map as `pair_wise` makes them, not normed: what it needs of a teacher's map and no more.

    Args:
        features: (N, C, h, w).
        granularity: β, as in `pair_wise`.
        pooling: ``"avg"`` or ``"max"``.
        mask: (N, h, w) bool, True where a pixel counts. A node without valid pixels is zero.
        convention: a preset, as in `pair_wise`.

    Returns:
        (N, C, p, q) with p = ⌈h/β⌉ and q = ⌈w/β⌉ (float32 for half-precision input).
    """
    form = _resolve(_Form(granularity, pooling), convention)
    check_map("features", features)
    check_mask(mask, features)
    cell = _cell(form.granularity, features.shape[-2:])
    return _nodes(full_precision(features), cell, form.pooling, mask)[0]


def _check_nodes(student: Tensor, teacher: Tensor, cell: tuple[int, int]) -> None:
    """With `pooled_teacher`: the teacher's nodes lie on the grid that the student's map is pooled to."""
    check_map("student", student)
    check_map("teacher", teacher)
    n, _, h, w = student.shape
    p, q = -(-h // cell[0]), -(-w // cell[1])
    if teacher.shape[0] != n or teacher.shape[2:] != (p, q):
        raise ValueError(
            f"teacher {tuple(teacher.shape)} with pooled_teacher=True; expected nodes of shape ({n}, C', {p}, {q}), "
            f"cells of {cell[0]}×{cell[1]} of student {tuple(student.shape)}: pool it with pool_nodes, with the same "
            "granularity and convention, from a map of the student's size"
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
    if mask is None:
        if cell == (1, 1):
            return x, None
        return (_average(x, cell, None) if pooling == "avg" else _largest(x, cell)), None
    counts = mask[:, None]  # (N, 1, h, w)
    valid = _largest(counts.to(x.dtype), cell) > 0
    if pooling == "avg":
        return _average(x, cell, counts), valid
    nodes = _largest(x.masked_fill(~counts, float("-inf")), cell)
    return nodes.masked_fill(~valid, 0.0), valid


def _average(x: Tensor, cell: tuple[int, int], counts: Tensor | None) -> Tensor:
    """Mean over each cell's pixels that count (N, 1, h, w); 0 where none does."""
    if cell[0] * cell[1] <= _FEW and not torch.compiler.is_compiling():
        result: Any = _CellMeans.apply(x, cell, counts)
        return result
    # There is no padding to count. But where it is counted, torch.compile divides the gradient of a cell that the
    # border cuts by the whole cell (torch 2.14: pytorch#198119).
    pool = partial(F.avg_pool2d, kernel_size=cell, ceil_mode=True, count_include_pad=False)
    if counts is None:
        return pool(x)
    share = pool(counts.to(x.dtype))
    return pool(x.masked_fill(~counts, 0.0)) / torch.where(share > 0, share, 1.0)


class _CellMeans(torch.autograd.Function):
    """`_average` of small cells, pixel by pixel of the cell: half the time of masking, pooling and their backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cell: tuple[int, int], counts: Tensor | None) -> Tensor:
        h, w = x.shape[-2:]
        total = x.new_zeros(*x.shape[:2], -(-h // cell[0]), -(-w // cell[1]))
        number = x.new_zeros(x.shape[0], 1, *total.shape[-2:])
        for pixel in _pixels(cell):
            part = x[pixel]
            inner = (..., slice(part.shape[-2]), slice(part.shape[-1]))
            if counts is None:
                total[inner] += part
                number[inner] += 1
            else:
                total[inner] += part.masked_fill(~counts[pixel], 0.0)
                number[inner] += counts[pixel]
        number = number.clamp_(min=1)
        ctx.cell, ctx.size = cell, (h, w)
        ctx.save_for_backward(number, counts)
        return total.div_(number)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore[bad-override]
        number, counts = ctx.saved_tensors
        grad = grad / number
        out = grad.new_empty(*grad.shape[:2], *ctx.size)
        for pixel in _pixels(ctx.cell):
            part = out[pixel]
            part.copy_(grad[..., : part.shape[-2], : part.shape[-1]])
            if counts is not None:
                part.masked_fill_(~counts[pixel], 0.0)
        return out, None, None


def _pixels(cell: tuple[int, int]) -> Iterator[tuple[Any, ...]]:
    """Indices of the maps that each pixel of the cells makes."""
    for y in range(cell[0]):
        for x in range(cell[1]):
            yield (..., slice(y, None, cell[0]), slice(x, None, cell[1]))


def _largest(x: Tensor, cell: tuple[int, int]) -> Tensor:
    return F.max_pool2d(x, cell, cell, ceil_mode=True)


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

    def reduce(self, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """What a store of teacher maps keeps instead of features: nodes (N, C', p, q), to be given back to the
        call with the same mask and ``pooled_teacher=True``."""
        return pool_nodes(
            teacher.detach(),
            granularity=self.granularity,
            pooling=self.pooling,
            mask=mask,
            convention=self.convention,
        )

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        pooled_teacher: bool = False,
    ) -> Tensor:
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
            pooled_teacher=pooled_teacher,
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
