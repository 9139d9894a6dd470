"""Depth of one image, as arrays that move with the image's geometry.

Intrinsics put pixel j at its centre, the number j itself (OpenCV's convention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from densekd.errors import DataError
from densekd.ops.names import first_few
from densekd.targets.arrays import nearest, padded
from densekd.targets.report import CheckReport, joined
from densekd.targets.window import Window
from densekd.types import DepthMaps

Intrinsics = tuple[float, float, float, float]
_UNKNOWN = (float("nan"),) * 4  # intrinsics in a batch, of an image without
# Median depths of rooms and streets lie between these, in metres; those of a wrong unit hardly ever.
PLAUSIBLE_DEPTH = (0.2, 200.0)


@dataclass
class DepthReport(CheckReport):
    """Of depth maps.

    Attributes:
        valid, pixels: with known depth, and all, of `labelled` samples.
        depth_range: nearest and farthest, in metres.
        medians: of each map's known depth, in metres.
        cameras: maps that come with intrinsics.
        empty: names of maps without a known pixel.
    """

    valid: int = 0
    pixels: int = 0
    depth_range: tuple[float, float] | None = None
    medians: list[float] = field(default_factory=list)
    cameras: int = 0
    empty: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """Of the maps' medians."""
        return float(np.median(self.medians)) if self.medians else None

    def add_target(self, name: str, facts: dict[str, Any]) -> None:
        self.valid += facts["valid"]
        self.pixels += facts["pixels"]
        self.cameras += facts["camera"]
        if facts["known"]:
            nearest, median, farthest = facts["known"]
            self.medians.append(median)
            self.depth_range = joined(self.depth_range, (nearest, farthest))
        else:
            self.empty.append(name)

    def useless(self) -> list[tuple[str, str]]:
        return [(name, "depth is 0 (unknown) at every pixel") for name in self.empty]

    def remarks(self) -> list[str]:
        if self.labelled and not self.valid:
            raise DataError(
                f"no pixel of {self.labelled} samples tried has a depth: nothing can be learned from them"
            )
        remarks = []
        if self.empty:
            remarks.append(
                f"depth is 0 (unknown) at every pixel of {len(self.empty)} of {self.labelled} samples tried: "
                f"{first_few(self.empty)}. They teach nothing and are not scored; `densekd data check` lists them all."
            )
        low, high = PLAUSIBLE_DEPTH
        if self.median is not None and not low <= self.median <= high:
            remarks.append(
                f"the median depth of {len(self.medians)} samples tried is {self.median:g} m, outside "
                f"{low:g}-{high:g} m: is the unit that of the depth files (`unit`)?"
            )
        return remarks

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        del content["medians"]
        share = self.valid / self.pixels if self.pixels else 0.0
        return {**content, "median": self.median, "valid_fraction": share}

    def target_lines(self) -> list[str]:
        if self.median is None or self.depth_range is None:
            return ["depth        none"]
        nearest, farthest = self.depth_range
        low, high = PLAUSIBLE_DEPTH
        doubt = "" if low <= self.median <= high else "; is the unit right?"
        return [
            f"depth        {nearest:.3g} m nearest, {self.median:.3g} m median, {farthest:.3g} m farthest{doubt}",
            f"known        {self.valid / self.pixels:.2%} of the pixels",
            f"intrinsics   of {self.cameras} images",
        ]


@dataclass
class DepthTarget:
    """The true depth of one image.

    Attributes:
        depth: (H, W) float32 metres along the optical axis; 0 where unknown.
        intrinsics: fx, fy, cx, cy in pixels of this image, or None. Pixel (row i, column j) is seen along
            ``((j - cx) / fx, (i - cy) / fy, 1)``: a pixel's number is its centre.
    """

    name: ClassVar = "depth maps"
    report: ClassVar = DepthReport

    depth: np.ndarray
    intrinsics: Intrinsics | None = None

    @classmethod
    def empty(cls, size: tuple[int, int], ignore_index: int = -1) -> DepthTarget:
        """An image (height, width) of unknown depth."""
        return cls(np.zeros(size, dtype=np.float32))

    def crop(self, top: int, left: int, height: int, width: int) -> DepthTarget:
        """A window in its own pixels: the principal point moves, and may lie outside."""
        depth = self.depth[top : top + height, left : left + width]
        return DepthTarget(depth, cropped_intrinsics(self.intrinsics, top, left))

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
            depth = nearest(np.ascontiguousarray(depth), to_size)
        if zoom != 1:
            depth = (depth / zoom).astype(np.float32)
        return DepthTarget(depth, resized_intrinsics(self.intrinsics, from_size, to_size, zoom))

    def flip(self, width: int) -> DepthTarget:
        """Mirrored left and right, in an image so wide; X of each point changes its sign."""
        return DepthTarget(self.depth[:, ::-1], flipped_intrinsics(self.intrinsics, width))

    def pad(self, size: tuple[int, int], ignore_index: int = -1) -> DepthTarget:
        """Unknown depth at the bottom and on the right."""
        if self.depth.shape == tuple(size):
            return self
        return DepthTarget(padded(self.depth, size, 0), self.intrinsics)

    @staticmethod
    def stack(targets: Sequence[DepthTarget]) -> tuple[Tensor, Tensor]:
        """The two fields of `DepthMaps`; torch pins the memory of tensors in a tuple, but not in a class of ours."""
        maps = to_depth_maps(targets)
        return maps.depth, maps.intrinsics

    @staticmethod
    def to_batch(stacked: Sequence[Tensor], inside: Tensor) -> DepthMaps:
        """As `DepthMaps`."""
        return DepthMaps(*stacked)

    def pack(self) -> tuple[list[np.ndarray], list[float] | None]:
        """The depth, and the intrinsics where they are known."""
        return [self.depth], self.intrinsics and [float(value) for value in self.intrinsics]

    @classmethod
    def unpack(cls, arrays: list[np.ndarray], extra: Sequence[float] | None) -> DepthTarget:
        """The target of what `pack` gave."""
        return cls(arrays[0], None if extra is None else _four(extra))

    def facts(self, num_classes: int, ignore_index: int) -> dict[str, Any]:
        """See `DepthReport`."""
        known = self.depth[self.depth > 0]
        return {
            "valid": known.size,
            "pixels": self.depth.size,
            "known": (float(known.min()), float(np.median(known)), float(known.max()))
            if known.size
            else (),
            "camera": self.intrinsics is not None,
        }

    @staticmethod
    def from_pixels(
        pixels: Tensor,
        inside: Tensor,
        extras: Sequence[Sequence[float] | None],
        windows: Sequence[Window],
        ignore_index: int,
    ) -> DepthMaps:
        """`Batch.targets`, made on the device; see `ClassMap.from_pixels` for the arguments."""
        zooms = torch.tensor([window.zoom for window in windows], device=pixels.device)
        cameras = [
            _intrinsics_in(None if extra is None else _four(extra), window) or _UNKNOWN
            for extra, window in zip(extras, windows, strict=True)
        ]
        depth = (pixels / zooms[:, None, None]).masked_fill(~inside, 0)
        return DepthMaps(depth[:, None], torch.tensor(cameras, device=pixels.device))


def cropped_intrinsics(intrinsics: Intrinsics | None, top: int, left: int) -> Intrinsics | None:
    """fx, fy, cx, cy of a window that begins at this row and column."""
    if intrinsics is None:
        return None
    fx, fy, cx, cy = intrinsics
    return fx, fy, cx - left, cy - top


def flipped_intrinsics(intrinsics: Intrinsics | None, width: int) -> Intrinsics | None:
    """fx, fy, cx, cy of an image of this width with left and right exchanged."""
    if intrinsics is None:
        return None
    fx, fy, cx, cy = intrinsics
    return fx, fy, width - 1 - cx, cy


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


def _intrinsics_in(intrinsics: Intrinsics | None, window: Window) -> Intrinsics | None:
    """After crop, resize and mirror, as `DepthTarget` has them."""
    cut = cropped_intrinsics(intrinsics, window.rows.start, window.columns.start)
    resized = resized_intrinsics(cut, window.taken, window.size, window.zoom)
    return flipped_intrinsics(resized, window.size[1]) if window.flip else resized


def _four(values: Sequence[float]) -> Intrinsics:
    fx, fy, cx, cy = values
    return fx, fy, cx, cy


def to_depth_maps(targets: Sequence[DepthTarget]) -> DepthMaps:
    """Targets of one size as tensors; intrinsics that are not known become NaN."""
    return DepthMaps(
        torch.from_numpy(
            np.stack([target.depth for target in targets])[:, None].astype(np.float32)
        ),
        torch.tensor([target.intrinsics or _UNKNOWN for target in targets], dtype=torch.float32),
    )
