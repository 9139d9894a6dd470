"""Pair-wise distillation (Pa): the student's regions resemble each other as the teacher's do.

The way of a call: features -> nodes (pooled cells) -> cosines between connected nodes -> affinity -> mean squared
difference. Letters: N images, C channels, h×w the map, p×q the grid of nodes, n = p·q, K nodes a window holds.

Three forms give the same sum of squares, none with a large n×n matrix in memory: `_GramSquares` (cosines of all nodes,
from C×C products), `_window_squares` (a small window, by shifts), `_row_squares` (whatever else, rows in slices).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from densekd.losses._checks import (
    check_choice,
    check_map,
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
# What a float64 product costs in float32 ones: twice on a CPU, 2 to 64 times on a GPU (so there only large maps gain).
_FLOAT64_PRICE = {"cpu": 2, "cuda": 32}
# Entries of the n×n matrix made at a time.
_SLICE = 2**22
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
        t = full_precision(teacher.detach())
        if not pooled_teacher:
            t, _ = _nodes(t, cell, form.pooling, mask)
        elif valid is not None:
            t = t.masked_fill(~valid, 0.0)  # whatever they hold: the forms rely on zeros there
        s, t = _unit(s, form.norm_gradient), _unit(t, form.norm_gradient)

        window = _window(form.connection_range, s.shape[-2:])
        nodes = s.shape[-2] * s.shape[-1]
        if window is not None and window[0] * window[1] * _SHIFTS_PAY <= nodes:
            squares, edges = _window_squares(s, t, valid, window, form.affinity)
        elif window is None and form.affinity == "cosine" and _gram_pays(s, t):
            squares, edges = _gram_squares(s, t, valid)
        else:
            squares, edges = _row_squares(s, t, valid, window, form.affinity)
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


def _gram_pays(student: Tensor, teacher: Tensor) -> bool:
    """Whether C×C products cost less than the n×n matrix: multiplications per node, forward and backward.

    With C channels on both sides that is 5 C² against 4 n C: from n = 1.25 C on. With different widths the C×C
    products are float64, for its price; without float64 on the device the answer is no.
    """
    s, t = student.shape[1], teacher.shape[1]
    nodes = student.shape[-2] * student.shape[-1]
    kind = student.device.type
    if s == t or student.dtype == torch.float64:
        price = 1
    elif kind == "mps":
        return False
    else:
        price = _FLOAT64_PRICE.get(kind, _FLOAT64_PRICE["cuda"])
    return price * (2 * s * s + 2 * s * t + t * t) <= nodes * (3 * s + t)


def _gram_squares(student: Tensor, teacher: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of squared differences of the cosines of all nodes, and how many: (N,) each."""
    # A node that is not valid is zero (see `_nodes`), and so are its cosines: only the count needs the mask.
    squares = _GramSquares.apply(student.flatten(2), teacher.flatten(2))
    if valid is None:
        return squares, torch.full_like(squares, student[0, 0].numel() ** 2, dtype=torch.int64)
    return squares, valid.sum(dim=(1, 2, 3)) ** 2


class _GramSquares(torch.autograd.Function):
    """‖SᵀS − TᵀT‖² of unit nodes S (N, C, n) and T (N, C', n), from products no larger than C×C.

    ‖·‖² is the sum of the squared entries, tr(YᵀY), and tr(YZ) = tr(ZY). This gives the plain expansion

        ‖SᵀS − TᵀT‖² = ‖P‖² − 2 ‖R‖² + ‖Q‖²   with   P = SSᵀ, R = STᵀ, Q = TTᵀ,

    a small difference of large numbers where the two graphs are alike, so it is summed in float64. With equal widths
    there is a form that keeps its digits in any precision when S ≈ T: for D = S − T and X = S + T

        SᵀS − TᵀT = ½ (DᵀX + XᵀD)
        ‖SᵀS − TᵀT‖² = ½ (tr(DDᵀ XXᵀ) + tr(XDᵀ XDᵀ)) = ½ (⟨A, B⟩ + ⟨E, Eᵀ⟩)   with   A = DDᵀ, B = XXᵀ, E = XDᵀ.

    The gradient with respect to S is 4 S (SᵀS − TᵀT), that is

        4 (P S − R T)   or   2 S (DᵀX + XᵀD) = (E + A) X + (B + Eᵀ) D,   since 2 S = X + D.

    Nodes enter a slice at a time, so that D, X and float64 copies need no room to speak of. Written as a function of
    its own because autograd would keep those for backward, and take more than twice the products.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ctx.equal = student.shape[1] == teacher.shape[1]
        a = b = e = student.new_zeros(())
        for s, t in _node_slices(student, teacher, ctx.equal):
            a, b, e = a + s @ s.mT, b + t @ t.mT, e + t @ s.mT
        ctx.save_for_backward(student, teacher, a, b, e)
        if ctx.equal:
            squares = (a * b + e * e.mT).sum(dim=(1, 2)) / 2
        else:
            squares = a.square().sum(dim=(1, 2)) + b.square().sum(dim=(1, 2))
            squares = squares - 2 * e.square().sum(dim=(1, 2))
        return squares.clamp(min=0).to(student.dtype)  # rounding may take a zero below it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore[bad-override]
        student, teacher, a, b, e = ctx.saved_tensors
        left, right = (b + e.mT, e + a) if ctx.equal else (4 * a, -4 * e.mT)
        grad = grad[:, None, None].to(a.dtype)
        left, right = grad * left, grad * right
        out = torch.empty_like(student)
        begin = 0
        for s, t in _node_slices(student, teacher, ctx.equal):
            out[..., begin : begin + s.shape[2]] = left @ s + right @ t
            begin += s.shape[2]
        return out, None


def _node_slices(student: Tensor, teacher: Tensor, equal: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """A few nodes at a time: (D, X) of equal widths, else (S, T) in float64."""
    size = max(1024, student.shape[2] // 16)
    for s, t in zip(student.split(size, dim=2), teacher.split(size, dim=2), strict=True):
        yield (s - t, s + t) if equal else (s.double(), t.double())


def _shifts(x: Tensor, window: tuple[int, int]) -> list[Tensor]:
    """For each of the window's K offsets the map (N, C, p, q) of the neighbours there, 0 outside."""
    p, q = x.shape[-2:]
    kh, kw = window
    padded = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2))
    return [padded[..., i : i + p, j : j + q] for i in range(kh) for j in range(kw)]


def _window_squares(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    window: tuple[int, int],
    affinity: str,
) -> tuple[Tensor, Tensor]:
    """Sum of squared differences over the edges within the window, and how many: (N,) each."""
    edges = _window_edges(valid, window, student)
    return _squares(
        _affinity(_window_cosines(student, window), edges, affinity),
        _affinity(_window_cosines(teacher, window), edges, affinity),
        edges,
    )


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


def _row_squares(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    window: tuple[int, int] | None,
    affinity: str,
) -> tuple[Tensor, Tensor]:
    """Sum of squared differences over the edges of the n×n matrix, and how many: (N,) each.

    The matrix is made r rows at a time and not kept: backward makes those rows once more.
    """
    grid = student.shape[-2:]
    s, t = student.flatten(2), teacher.flatten(2)  # (N, C, n)
    images, _, n = s.shape
    r = max(1, _SLICE // (images * n))

    def slice_squares(rows_s: Tensor, rows_t: Tensor, begin: int) -> tuple[Tensor, Tensor]:
        rows = slice(begin, begin + rows_s.shape[2])
        edges = _row_edges(valid, window, grid, rows, s.device)
        return _squares(
            _affinity(rows_s.mT @ s, edges, affinity),  # (N, r, n)
            _affinity(rows_t.mT @ t, edges, affinity),
            edges,
        )

    if r >= n:
        return slice_squares(s, t, 0)
    parts = [
        checkpoint(slice_squares, *rows, i * r, use_reentrant=False, preserve_rng_state=False)
        for i, rows in enumerate(zip(s.split(r, dim=2), t.split(r, dim=2), strict=True))
    ]
    squares, counts = zip(*parts, strict=True)
    return torch.stack(squares).sum(dim=0), torch.stack(counts).sum(dim=0)


def _row_edges(
    valid: Tensor | None,
    window: tuple[int, int] | None,
    grid: torch.Size,
    rows: slice,
    device: torch.device,
) -> Tensor | None:
    """Which entries in these r rows of the n×n matrix are edges: (N or 1, r, n) bool, None for all."""
    edges = None
    if window is not None:
        p, q = grid
        y = torch.arange(p, device=device).repeat_interleave(q)
        x = torch.arange(q, device=device).repeat(p)
        near_y = (y[rows, None] - y).abs() <= window[0] // 2
        near_x = (x[rows, None] - x).abs() <= window[1] // 2
        edges = (near_y & near_x)[None]  # (1, r, n)
    if valid is not None:
        flat = valid.flatten(1)  # (N, n)
        both = flat[:, rows, None] & flat[:, None, :]  # (N, r, n)
        edges = both if edges is None else both & edges
    return edges


def _affinity(cosines: Tensor, edges: Tensor | None, kind: str) -> Tensor:
    if kind == "sigmoid":
        return cosines.sigmoid()
    if kind == "softmax":
        if edges is not None:
            # Far below any cosine, yet finite: a row without edges must not become NaN.
            cosines = cosines.masked_fill(~edges, -1e4)
        return cosines.softmax(dim=-1)
    return cosines


def _squares(student: Tensor, teacher: Tensor, edges: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of squared differences of (N, rows, columns) over an image's edges, and how many: (N,) each."""
    square = (student - teacher).square()
    if edges is None:
        count = torch.full(square.shape[:1], square[0].numel(), device=square.device)
        return square.sum(dim=(1, 2)), count
    count = edges.sum(dim=(1, 2)).expand(square.shape[0])
    return square.masked_fill(~edges, 0.0).sum(dim=(1, 2)), count


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
