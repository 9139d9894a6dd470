"""Transformers' tensors as maps: tokens (N, L, C) and channels-last maps (N, h, w, C) become (N, C, h, w)."""

from __future__ import annotations

from torch import Tensor, nn

PREFIX = 16  # class and register tokens that may stand before the tokens of the image
HALVINGS = 5  # a pyramid of transformers (Swin, MiT) halves its first grid four times at most

Grid = tuple[int, int]


def patch_size(model: nn.Module) -> int | None:
    """The stride of the convolution that cuts the image into patches; None where the network has none."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride[0] > 1:
            square = module.kernel_size == module.stride and module.stride[0] == module.stride[1]
            return int(module.stride[0]) if square else None
    return None


def as_map(value: Tensor, image: Grid, patch: int | None) -> Tensor:
    """A tapped tensor as (N, C, h, w), where it is clear how its places lie in the image; else as it is.

    - (N, L, C): the last h·w of the L tokens are those of the image, from its upper left corner row by row; up to
      `PREFIX` class and register tokens before them are dropped. (h, w) follows from `token_grid`.
    - (N, h, w, C), as Swin has it: where h and w have the shape of the image, and the last two sizes do not.

    Args:
        image: (height, width) of the network's input.
        patch: see `patch_size`.
    """
    if value.ndim == 3:
        grid = token_grid(value.shape[1], image, patch)
        if grid is None:
            return value
        tokens = value[:, value.shape[1] - grid[0] * grid[1] :]
        return tokens.transpose(1, 2).unflatten(2, grid)
    if value.ndim != 4 or similar(value.shape[2], value.shape[3], image):
        return value
    last = similar(value.shape[1], value.shape[2], image)
    return value.permute(0, 3, 1, 2) if last else value


def token_grid(tokens: int, image: Grid, patch: int | None) -> Grid | None:
    """(h, w) of the places that L tokens stand for, or None where it does not follow.

    With a known patch size the grid is the image over it, or over its multiples by two, and the largest that leaves 0
    to `PREFIX` tokens is taken. Without, every size that divides the image is tried, and there must be one grid only.
    A grid has two places a side or more.
    """
    if patch is None:
        sizes = [s for s in range(2, min(image) + 1) if image[0] % s == 0 and image[1] % s == 0]
    else:
        sizes = [patch * 2**k for k in range(HALVINGS)]
    found: list[Grid] = []
    for size in sizes:
        # A network crops what does not fill a patch, or pads it.
        for grid in (
            (image[0] // size, image[1] // size),
            (-(-image[0] // size), -(-image[1] // size)),
        ):
            places = grid[0] * grid[1]
            if min(grid) > 1 and 0 <= tokens - places <= PREFIX and grid not in found:
                found.append(grid)
    if patch is None:
        return found[0] if len(found) == 1 else None
    return max(found, key=lambda grid: grid[0] * grid[1], default=None)


def similar(height: int, width: int, image: Grid) -> bool:
    """Whether a map of this size could be the image at some stride, rounded up or down."""
    # A stride s gives `height` where image / (height + 1) < s < image / (height - 1); both sides must share one s.
    lower = max(image[0] / (height + 1), image[1] / (width + 1))
    upper = min(
        image[0] / (height - 1) if height > 1 else float("inf"),
        image[1] / (width - 1) if width > 1 else float("inf"),
    )
    return lower < upper
