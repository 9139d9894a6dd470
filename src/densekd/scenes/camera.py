"""The one projective camera from which labels, boxes and depth all follow.

World frame: X right, Y up, Z forward along the street at the camera, metres, ground at Y = 0.
Camera frame: x right, y down, z forward. *Depth* is the camera frame's z, not the ray's length.
Pixel (row i, column j) of an image lies at u = j, v = i (centres at whole numbers, as in OpenCV).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Scenes are drawn this much finer and filtered down; labels and depth take every second sample.
SUPERSAMPLE = 2


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above the ground plane.

    Args:
        width, height: size of the finished image in pixels.
        focal: focal length in pixels of the finished image (square pixels).
        cx, cy: principal point in pixels of the finished image.
        rotation: (3, 3), world to camera.
        position: (3,), metres.
    """

    width: int
    height: int
    focal: float
    cx: float
    cy: float
    rotation: np.ndarray
    position: np.ndarray

    @property
    def canvas_shape(self) -> tuple[int, int]:
        return self.height * SUPERSAMPLE, self.width * SUPERSAMPLE

    @property
    def pixel_unit(self) -> float:
        """Canvas pixels per pixel of a 256-wide image: keeps thin things equally thin at any size."""
        return SUPERSAMPLE * self.width / 256

    @cached_property
    def right(self) -> np.ndarray:
        """Horizontal unit vector (3,) across the view; the axis along which billboards stand."""
        axis = self.rotation[0] * (1.0, 0.0, 1.0)
        return axis / np.linalg.norm(axis)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (n, 3) to canvas pixels (n, 2) and depth (n,). Depth must be positive."""
        local = (points - self.position) @ self.rotation.T
        depth = local[:, 2]
        safe = np.maximum(depth, 1e-3)[:, None]
        pixels = SUPERSAMPLE * (self.focal * local[:, :2] / safe + (self.cx, self.cy))
        return pixels, depth

    def axes(self, x0: int, x1: int, y0: int, y1: int) -> tuple[np.ndarray, np.ndarray]:
        """Ray slopes x/z (w,) and y/z (h,) of the canvas columns x0..x1 and rows y0..y1."""
        step = 1.0 / (SUPERSAMPLE * self.focal)
        xs = np.arange(x0, x1, dtype=np.float32) * step - self.cx / self.focal
        ys = np.arange(y0, y1, dtype=np.float32) * step - self.cy / self.focal
        return xs.astype(np.float32), ys.astype(np.float32)

    def plane_depth(
        self, normal: np.ndarray, point: np.ndarray, window: tuple[int, int, int, int]
    ) -> np.ndarray:
        """Depth (h, w) of the plane through `point` in the canvas window (x0, x1, y0, y1).

        Pixels whose ray misses the plane get a very large depth.
        """
        distance = float(normal @ (point - self.position))
        a, b, c = (self.rotation @ normal).tolist()
        xs, ys = self.axes(*window)
        slope = (a * xs)[None, :] + (b * ys + c)[:, None]
        inverse = slope * np.float32(1.0 / distance if abs(distance) > 1e-6 else 1e6)
        return 1.0 / np.maximum(inverse, np.float32(1e-4))

    def texture_homography(
        self, corner: np.ndarray, along: np.ndarray, down: np.ndarray, per_metre: float
    ) -> np.ndarray:
        """(3, 3) from texture pixels (column, row) on a plane to canvas pixels."""
        focal = SUPERSAMPLE * self.focal
        intrinsics = np.array(
            [
                [focal, 0, SUPERSAMPLE * self.cx],
                [0, focal, SUPERSAMPLE * self.cy],
                [0, 0, 1.0],
            ]
        )
        columns = np.stack([along / per_metre, down / per_metre, corner - self.position], axis=1)
        return intrinsics @ self.rotation @ columns


def make_camera(rng: np.random.Generator, height: int, width: int, x: float) -> Camera:
    """A camera with jittered height, view angle, pitch, yaw and roll, standing at lateral `x`."""
    above = rng.uniform(1.25, 2.3)
    view = np.deg2rad(rng.uniform(46.0, 70.0))
    pitch, yaw, roll = np.deg2rad(rng.normal(0.0, (1.8, 3.5, 0.9)).clip(-8.0, 8.0))
    shift = rng.uniform(-0.06, 0.06)
    sin, cos = np.sin(pitch), np.cos(pitch)
    tilt = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    sin, cos = np.sin(yaw), np.cos(yaw)
    yaw_rotation = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    sin, cos = np.sin(roll), np.cos(roll)
    lean = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return Camera(
        width=width,
        height=height,
        focal=width / 2 / np.tan(view / 2),
        cx=(width - 1) / 2,
        cy=(height - 1) / 2 + shift * height,
        rotation=lean @ tilt @ np.diag([1.0, -1.0, 1.0]) @ yaw_rotation,
        position=np.array([x, above, 0.0]),
    )
