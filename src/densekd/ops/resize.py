"""The one place where align_corners is decided.

All of this package resizes maps bilinearly with ``align_corners=True``, as the paper's authors do for logits,
pyramid priors and the discriminator's image. (mmsegmentation and SMP use False; a map of a network trained there may
be handed in at full size instead.) Class labels and masks are resized by nearest neighbour on the same grid.

Images whose result is in coordinates (boxes) are resized by the areas of their pixels, ``align_corners=False``, as in
training: box corners are points of the plane in which pixel j covers [j, j + 1], and scale with the image's sides.
On the grid of `resize_map` the content of an image's border would move by up to half a pixel against them. Where maps
come back to the image's own size (`densekd.ops.tiling.predict_dense`), image and maps share the grid of `resize_map`,
which takes them back to where they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN_CORNERS = True


def resize_map(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear (N, C, h, w) -> (N, C, *size); the tensor itself where the size already fits.

    An exported program resizes in any case: comparing sizes would fix them to those whose comparison ends the same.
    """
    if not torch.compiler.is_exporting() and tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=ALIGN_CORNERS)


def resize_image(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear (N, C, H, W) -> (N, C, *size) by pixel areas; the tensor itself where the size already fits.

    ``cv2.resize`` does the same to training images, and torchvision's detectors to their images. Neither smooths an
    image that it shrinks, and nor does this: in evaluation a network should see what it learned from. (An FCOS that was
    trained on VOC's pictures at a short side of 256 had AP 19.4 there, 18.1 with ``antialias=True`` and 18.9 on the
    grid of `resize_map`. At 160, much smaller than in training, smoothing helped: 15.1 without and 15.7 with it.)
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def nearest_indices(source: int, target: int, device: torch.device | str = "cpu") -> Tensor:
    """For each of `target` positions the nearest of `source` positions, on the align_corners grid."""
    if target == 1 or source == 1:
        # A single sample stands for the whole side: take its middle.
        return torch.full((target,), (source - 1) // 2, dtype=torch.long, device=device)
    # Integer arithmetic: round(i * (source - 1) / (target - 1)), half up, the same on every device.
    steps = torch.arange(target, device=device)
    return (2 * steps * (source - 1) + (target - 1)) // (2 * (target - 1))


def resize_labels(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest (N, H, W) labels or masks of any dtype -> (N, *size), on the same grid as `resize_map`."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    rows = nearest_indices(x.shape[-2], size[0], x.device)
    columns = nearest_indices(x.shape[-1], size[1], x.device)
    return x[..., rows[:, None], columns[None, :]]
