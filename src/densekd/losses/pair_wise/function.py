"""Pair-wise distillation (Pa): the student's regions resemble each other as the teacher's do.

The way of a call: features -> nodes (pooled cells, `nodes`) -> cosines between connected nodes -> affinity -> mean
squared difference; the last three in `gram` or `rows`, whichever costs less. Letters: N images, C channels, h×w the
map, p×q the grid of nodes.
"""

from __future__ import annotations

from torch import Tensor, nn

from densekd.losses._checks import check_mask, check_pair, full_precision, no_autocast
from densekd.losses.pair_wise.arguments import Form, Range, resolve, window_of
from densekd.losses.pair_wise.gram import gram_pays, gram_squares
from densekd.losses.pair_wise.nodes import cell_of, check_nodes, make_nodes, pool_nodes
from densekd.losses.pair_wise.rows import count_edges, row_squares
from densekd.losses.wants import Wants
from densekd.ops.collectives import mean_over_ranks


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
    form = resolve(
        Form(granularity, pooling, connection_range, affinity, norm_gradient), convention
    )
    cell = cell_of(form.granularity, student.shape[-2:])
    if pooled_teacher:
        check_nodes(student, teacher, cell)
    else:
        check_pair(student, teacher, same_channels=False)
    check_mask(mask, student)

    with no_autocast(student):
        s, valid = make_nodes(full_precision(student), cell, form.pooling, mask)
        t = full_precision(teacher.detach()).to(s.dtype)
        if not pooled_teacher:
            t, _ = make_nodes(t, cell, form.pooling, mask)
        elif valid is not None:
            t = t.masked_fill(~valid, 0.0)  # whatever they hold: the forms rely on zeros there
        window = window_of(form.connection_range, s.shape[-2:])
        squares = squared_differences(s, t, valid, window, form.affinity, form.norm_gradient)
        edges = count_edges(valid, window, s)
        # The mean over each image's edges, then over the images that have any.
        per_image = squares / edges.clamp(min=1)  # (N,)
        return mean_over_ranks(per_image.sum(), (edges > 0).sum())


def squared_differences(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor | None,
    window: tuple[int, int] | None,
    affinity: str,
    norm_gradient: bool,
) -> Tensor:
    """Sum over an image's edges of the squared difference of two affinities, in the form that costs least.

    Args:
        student: nodes (N, C, p, q).
        teacher: nodes (N, C', p, q); receives no gradient.
        valid: (N, 1, p, q) bool, None for all. Nodes that are not valid must be zero.
        window: height and width in nodes, both odd; None for all nodes.
        affinity: ``"cosine"``, ``"sigmoid"``, ``"softmax"``.
        norm_gradient: whether the gradient passes through the norms.

    Returns:
        (N,).
    """
    if window is None and affinity == "cosine" and gram_pays(student, teacher):
        return gram_squares(student, teacher, norm_gradient)
    return row_squares(student, teacher, valid, window, affinity, norm_gradient)


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
        form = Form(granularity, pooling, connection_range, affinity, norm_gradient)
        resolve(form, convention)
        self.granularity = granularity
        self.pooling = pooling
        self.connection_range = form.connection_range
        self.affinity = affinity
        self.norm_gradient = norm_gradient
        self.convention = convention

    @property
    def wants(self) -> Wants:
        return Wants(reduce=self.reduce)

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
        form = resolve(
            Form(
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
