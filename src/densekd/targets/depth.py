"""Depth of one image, as arrays that move with the image's geometry.

Intrinsics put pixel j at its centre, the number j itself (OpenCV's convention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from densekd.types import DepthMaps

Intrinsics = tuple[float, float, float, float]


@dataclass
class DepthTarget:
    """The true depth of one image.

    Attributes:
        depth: (H, W) float32 metres along the optical axis; 0 where unknown.
        intrinsics: fx, fy, cx, cy in pixels of this image, or None. Pixel (row i, column j) is seen along
            ``((j - cx) / fx, (i - cy) / fy, 1)``: a pixel's number is its centre.
    """

    depth: np.ndarray
    intrinsics: Intrinsics | None = None

    @classmethod
    def empty(cls, size: tuple[int, int]) -> DepthTarget:
        """An image (height, width) of unknown depth."""
        return cls(np.zeros(size, dtype=np.float32))

    def crop(self, top: int, left: int, height: int, width: int) -> DepthTarget:
        """A window in its own pixels: the principal point moves, and may lie outside."""
        depth = self.depth[top : top + height, left : left + width]
        if self.intrinsics is None:
            return DepthTarget(depth)
        fx, fy, cx, cy = self.intrinsics
        return DepthTarget(depth, (fx, fy, cx - left, cy - top))

    def resize(
        self, from_size: tuple[int, int], to_size: tuple[int, int], zoom: float = 1.0
    ) -> DepthTarget:
        """The image goes from one (height, width) to another: by a change of resolution, times a zoom.

        Each pixel takes the nearest depth: a mean over an edge would be a surface that is not there.

        Of the factor ``to / from``, `zoom` is the part that stands for coming nearer (Eigen et al. 2014, section
        3.4: "scaling by s, depths divided by s", with the camera as it was); the rest is resolution, under which
        depth stays and focal lengths scale. So ``depth / zoom`` and ``f * to / from / zoom``. Back-projected, a
        point (X, Y, Z) becomes (X, Y, Z / zoom): planes stay planes and lengths across the view stay, but relief
        along it is pressed, as it must be where one camera's picture is passed off for another distance's.
        Centres lie on the half-pixel grid of the image's resize: ``c' = (c + 1/2) * to / from - 1/2``.
        """
        depth = self.depth
        if tuple(to_size) != depth.shape:
            # EXACT: plain INTER_NEAREST takes a pixel's corner for its centre.
            depth = cv2.resize(
                np.ascontiguousarray(depth),
                (to_size[1], to_size[0]),
                interpolation=cv2.INTER_NEAREST_EXACT,
            ).reshape(to_size)
        if zoom != 1:
            depth = (depth / zoom).astype(np.float32)
        return DepthTarget(depth, resized_intrinsics(self.intrinsics, from_size, to_size, zoom))

    def flip(self, width: int) -> DepthTarget:
        """Mirrored left and right, in an image so wide; X of each point changes its sign."""
        depth = self.depth[:, ::-1]
        if self.intrinsics is None:
            return DepthTarget(depth)
        fx, fy, cx, cy = self.intrinsics
        return DepthTarget(depth, (fx, fy, width - 1 - cx, cy))

    def pad(self, size: tuple[int, int]) -> DepthTarget:
        """Unknown depth at the bottom and on the right."""
        h, w = self.depth.shape
        depth = np.zeros(size, dtype=np.float32)
        depth[:h, :w] = self.depth
        return DepthTarget(depth, self.intrinsics)


def resized_intrinsics(
    intrinsics: Intrinsics | None,
    from_size: tuple[int, int],
    to_size: tuple[int, int],
    zoom: float = 1.0,
) -> Intrinsics | None:
    """fx, fy, cx, cy of an image resized from one (height, width) to another; see `DepthTarget.resize`."""
    if intrinsics is None:
        return None
    fx, fy, cx, cy = intrinsics
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return fx * x / zoom, fy * y / zoom, (cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5


def to_depth_maps(targets: Sequence[DepthTarget]) -> DepthMaps:
    """Targets of one size as tensors; intrinsics that are not known become NaN."""
    unknown = (float("nan"),) * 4
    return DepthMaps(
        torch.from_numpy(
            np.stack([target.depth for target in targets])[:, None].astype(np.float32)
        ),
        torch.tensor([target.intrinsics or unknown for target in targets], dtype=torch.float32),
    )
