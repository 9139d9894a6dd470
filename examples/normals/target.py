"""Surface normals of one image: unit vectors that turn with the image's geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from densekd.errors import DataError
from densekd.targets import CheckReport, Intrinsics, Window
from densekd.targets.arrays import mirrored, nearest, padded

# Neighbours whose depth differs by more than this share lie on two surfaces.
LARGEST_STEP = 0.1


@dataclass
class NormalReport(CheckReport):
    """What `densekd data check` counts of normals.

    Attributes:
        known, pixels: the numbers of pixels with a normal, and of all pixels, in labelled samples.
    """

    known: int = 0
    pixels: int = 0

    def add_target(self, name: str, facts: dict[str, Any]) -> None:
        self.known += facts["known"]
        self.pixels += facts["pixels"]

    def remarks(self) -> list[str]:
        if self.labelled and not self.known:
            raise DataError(
                f"no pixel of {self.labelled} samples tried has a normal: nothing can be learned from them"
            )
        return []

    def target_lines(self) -> list[str]:
        share = self.known / self.pixels if self.pixels else 0.0
        return [f"normals      known at {share:.2%} of the pixels"]


@dataclass
class NormalMap:
    """The normals of one image.

    Attributes:
        normals: (H, W, 3) float32 unit vectors in the camera's frame (x right, y down, z forward), towards the camera;
            (0, 0, 0) where none is known.
    """

    name: ClassVar = "surface normals"
    report: ClassVar = NormalReport

    normals: np.ndarray

    @classmethod
    def empty(cls, size: tuple[int, int], ignore_index: int = -1) -> NormalMap:
        """An image (height, width) without a known normal."""
        return cls(np.zeros((*size, 3), np.float32))

    def crop(self, top: int, left: int, height: int, width: int) -> NormalMap:
        """A window: directions stay."""
        return NormalMap(self.normals[top : top + height, left : left + width])

    def resize(
        self, from_size: tuple[int, int], to_size: tuple[int, int], zoom: float = 1.0
    ) -> NormalMap:
        """Each pixel takes the nearest normal.

        A change of resolution changes no direction. A zoom divides depth (`DepthTarget.resize`), so that the plane
        ax + by + cz = d becomes ax + by + (c · zoom)z = d.
        """
        normals = self.normals
        if tuple(to_size) != normals.shape[:2]:
            normals = nearest(np.ascontiguousarray(normals), to_size)
        if zoom != 1:
            normals = unit(normals * np.array([1, 1, zoom], np.float32))
        return NormalMap(normals)

    def flip(self, width: int) -> NormalMap:
        """Left and right are exchanged: so is the sign of x."""
        return NormalMap(mirrored(self.normals) * np.array([-1, 1, 1], np.float32))

    def pad(self, size: tuple[int, int], ignore_index: int = -1) -> NormalMap:
        """No normal is known at the bottom and on the right."""
        return NormalMap(padded(self.normals, size, 0))

    @staticmethod
    def stack(targets: Sequence[NormalMap]) -> Tensor:
        """(N, 3, H, W)."""
        arrays = np.stack([target.normals for target in targets])
        return torch.from_numpy(np.ascontiguousarray(arrays.transpose(0, 3, 1, 2)))

    @staticmethod
    def to_batch(stacked: Tensor, inside: Tensor) -> Tensor:
        """As it is."""
        return stacked

    def pack(self) -> tuple[list[np.ndarray], None]:
        """The array, and nothing beside it."""
        return [self.normals], None

    @classmethod
    def unpack(cls, arrays: list[np.ndarray], extra: None) -> NormalMap:
        """The target of what `pack` gave."""
        return cls(arrays[0])

    def facts(self, num_classes: int, ignore_index: int) -> dict[str, Any]:
        """See `NormalReport`."""
        known = int(np.count_nonzero(self.normals.any(axis=2)))
        return {"known": known, "pixels": self.normals.shape[0] * self.normals.shape[1]}

    @staticmethod
    def from_pixels(
        pixels: Tensor,
        inside: Tensor,
        extras: Sequence[None],
        windows: Sequence[Window],
        ignore_index: int,
    ) -> Tensor:
        """(N, 3, H, W) on the device, from (N, H, W, 3): what `resize`, `flip` and `pad` do to one target."""
        factors = torch.tensor(
            [[-1.0 if window.flip else 1.0, 1.0, window.zoom] for window in windows],
            device=pixels.device,
        )
        normals = torch.nn.functional.normalize(pixels * factors[:, None, None], dim=3)
        return (normals * inside[..., None]).permute(0, 3, 1, 2).contiguous()


def unit(vectors: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> of length 1; (0, 0, 0) stays."""
    length = np.linalg.norm(vectors, axis=2, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def normals_of(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """(H, W) metres, 0 where unknown -> (H, W, 3) normals.

    The normal is the cross product of the two differences between a point's neighbours, above and below it, and left
    and right of it. It is unknown at the border, and where a neighbour is unknown or lies on another surface.
    """
    height, width = depth.shape
    fx, fy, cx, cy = intrinsics
    rays = np.empty((height, width, 3))
    rays[..., 0] = (np.arange(width) - cx) / fx
    rays[..., 1] = ((np.arange(height) - cy) / fy)[:, None]
    rays[..., 2] = 1
    points = rays * depth[..., None]
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    centre = depth[1:-1, 1:-1]
    around = np.stack([depth[1:-1, 2:], depth[1:-1, :-2], depth[2:, 1:-1], depth[:-2, 1:-1]])
    one_surface = (np.abs(around - centre) <= LARGEST_STEP * centre).all(axis=0)
    normals = np.zeros((height, width, 3), np.float32)
    inner = unit(np.cross(across, down))
    # Towards the camera: against the ray.
    inner[(inner * rays[1:-1, 1:-1]).sum(axis=2) > 0] *= -1
    normals[1:-1, 1:-1] = inner * (one_surface & (centre > 0))[..., None]
    return normals
