"""Pyramid pooling (PSP), whose output the paper's pair-wise term compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.layers.abn import ABN
from densekd.ops.resize import resize_map


class GridPool(nn.AdaptiveAvgPool2d):
    """``nn.AdaptiveAvgPool2d`` of a square grid; in an exported program, as products with matrices of its cells.

    ONNX has no adaptive pooling: its converter would fix the cells to those of the size that was traced.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, side, side)."""
        side: int = self.output_size  # type: ignore[assignment]
        return pool_to(input, (side, side))


def pool_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``adaptive_avg_pool2d``: (N, C, h, w) -> (N, C, *size); in an exported program, as `GridPool` does it."""
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, size)
    rows, columns = (_cells(x.shape[axis], size[axis], x.device) for axis in (-2, -1))
    return rows.to(x.dtype) @ x @ columns.to(x.dtype).mT


def _cells(length: int, count: int, device: torch.device) -> Tensor:
    """(count, length): the weight of each position in each cell's mean."""
    place = torch.arange(count, device=device)[:, None]
    begin, end = place * length // count, ((place + 1) * length + count - 1) // count
    position = torch.arange(length, device=device)
    return ((position >= begin) & (position < end)).float() / (end - begin)


class PyramidPooling(nn.Module):
    """Pool to several grids, project, upsample, join with the input and fuse.

    Source: Zhao et al., *Pyramid Scene Parsing Network* (CVPR 2017), in the layout of the paper's authors: every
    projection has `out_channels` (PSPNet itself takes C / 4), both norms are `ABN` with leaky ReLU, priors come before
    the input in the joined map. Keys: ``stages.{i}.1`` conv, ``stages.{i}.2`` norm, ``bottleneck.0`` conv,
    ``bottleneck.1`` norm.

    Args:
        in_channels: C of the input.
        out_channels: the channels of each projection and of the result.
        sizes: side lengths of the pooled grids.
        dropout: whole channels, in training.

    Example:
        >>> PyramidPooling(16, 8).eval()(torch.randn(1, 16, 9, 13)).shape
        torch.Size([1, 8, 9, 13])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        sizes: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                GridPool(size),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                ABN(out_channels),
            )
            for size in sizes
        )
        joined = in_channels + len(sizes) * out_channels
        self.bottleneck = nn.Sequential(
            nn.Conv2d(joined, out_channels, 3, padding=1, bias=False),
            ABN(out_channels),
            nn.Dropout2d(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        size = (x.shape[-2], x.shape[-1])
        priors = [resize_map(stage(x), size) for stage in self.stages]
        return self.bottleneck(torch.cat([*priors, x], dim=1))
