"""The drawing surface: colour, class, depth and instance, filled together under one depth test."""

from collections.abc import Callable, Sequence
from typing import Self

import cv2
import numpy as np

from densekd.scenes.camera import SUPERSAMPLE, Camera
from densekd.scenes.classes import SKY

Colour = tuple[float, float, float] | np.ndarray
Points = np.ndarray | Sequence[tuple[float, float]]

# Things stand on the ground and lean on walls: a tie within this many metres goes to the newcomer.
_TIE = 0.25
_SHIFT = 4  # fillPoly's fractional bits: corners keep a sixteenth of a canvas pixel


def shade(colour: Colour, amount: float) -> tuple[int, int, int]:
    """An RGB colour (0..255) times a brightness, clipped to bytes."""
    red, green, blue = colour.tolist() if isinstance(colour, np.ndarray) else colour
    return (
        min(255, max(0, int(red * amount))),
        min(255, max(0, int(green * amount))),
        min(255, max(0, int(blue * amount))),
    )


class Canvas:
    """Supersampled buffers of one scene.

    Attributes:
        colour: (h, w, 3) uint8 RGB.
        label: (h, w) uint8 class.
        depth: (h, w) float32 metres; infinite where nothing but sky is seen.
        instance: (h, w) int32; 0 where no countable object is seen.
        instance_label: class of instance i at position i.
    """

    def __init__(self, camera: Camera) -> None:
        shape = camera.canvas_shape
        self.camera = camera
        self.colour = np.zeros((*shape, 3), np.uint8)
        self.label = np.full(shape, SKY, np.uint8)
        self.depth = np.full(shape, np.inf, np.float32)
        self.instance = np.zeros(shape, np.int32)
        self.instance_label: list[int] = [-1]

    def new_instance(self, label: int) -> int:
        self.instance_label.append(label)
        return len(self.instance_label) - 1

    def window(self, pixels: np.ndarray) -> tuple[int, int, int, int] | None:
        """Canvas window (x0, x1, y0, y1) around pixels (n, 2), or None if all of it is outside."""
        height, width = self.label.shape
        x0, y0 = np.floor(pixels.min(0)).astype(int) - 1
        x1, y1 = np.ceil(pixels.max(0)).astype(int) + 2
        x0, x1, y0, y1 = max(x0, 0), min(x1, width), max(y0, 0), min(y1, height)
        return (int(x0), int(x1), int(y0), int(y1)) if x0 < x1 and y0 < y1 else None

    def paste(
        self,
        window: tuple[int, int, int, int],
        colour: np.ndarray,
        mask: np.ndarray,
        depth: np.ndarray | float,
        label: int,
        instance: int = 0,
        tie: float = _TIE,
    ) -> None:
        """Write what `mask` (h, w) selects and what is not behind something drawn before."""
        x0, x1, y0, y1 = window
        seen = mask & (self.depth[y0:y1, x0:x1] > depth - np.float32(tie))
        cv2.copyTo(colour, seen.view(np.uint8), self.colour[y0:y1, x0:x1])
        self.label[y0:y1, x0:x1][seen] = label
        self.instance[y0:y1, x0:x1][seen] = instance
        if isinstance(depth, np.ndarray):
            np.copyto(self.depth[y0:y1, x0:x1], depth, where=seen)
        else:
            self.depth[y0:y1, x0:x1][seen] = depth

    def textured_quad(
        self,
        corner: np.ndarray,
        along: np.ndarray,
        down: np.ndarray,
        size: tuple[float, float],
        paint: Callable[[float], tuple[np.ndarray, np.ndarray | None]],
        label: int,
    ) -> None:
        """A textured rectangle in space. Where it is wholly hidden, its texture is never painted.

        Args:
            corner: (3,) world position of the texture's first pixel.
            along, down: (3,) unit vectors of the texture's columns and rows.
            size: extent along and down in metres.
            paint: from texture pixels per metre to the texture (h, w, 3) uint8 and either None or
                a mask (h, w) uint8 of 0 and 1, where the rectangle is solid.
        """
        wide, tall = size[0] * along, size[1] * down
        corners = np.stack([corner, corner + wide, corner + wide + tall, corner + tall])
        pixels, depth = self.camera.project(corners)
        if depth.min() < 0.3:
            return
        window = self.window(pixels)
        if window is None:
            return
        x0, x1, y0, y1 = window
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fill(mask, pixels - (x0, y0), 1)
        plane = self.camera.plane_depth(np.cross(along, down), corner, window)
        # A wall seen edge-on has no sound depth on its rim: keep it within its corners.
        np.clip(plane, depth.min(), depth.max(), out=plane)
        mask &= plane < self.depth[y0:y1, x0:x1]
        if not mask.any():
            return
        # A texture as fine as the picture needs at the wall's middle distance, within reason.
        fine = SUPERSAMPLE * self.camera.focal / np.sqrt(depth.min() * depth.max())
        texture, solid = paint(float(np.clip(fine, 1.0, 12.0 * self.camera.pixel_unit)))
        matrix = self.camera.texture_homography(corner, along, down, texture.shape[1] / size[0])
        matrix = np.array([[1.0, 0, -x0], [0, 1.0, -y0], [0, 0, 1.0]]) @ matrix
        frame = (x1 - x0, y1 - y0)
        colour = cv2.warpPerspective(texture, matrix, frame, borderMode=cv2.BORDER_REPLICATE)
        if solid is not None:
            seen_solid = cv2.warpPerspective(solid, matrix, frame, flags=cv2.INTER_NEAREST)
            mask = cv2.bitwise_and(mask, seen_solid)
        self.paste(window, colour, mask.astype(bool), plane, label, tie=0.0)

    def ground_mark(self, points: np.ndarray, colour: Colour, opacity: float, label: int) -> None:
        """Paint a polygon (n, 2) of ground (X, Z) positions, only where `label` already lies."""
        world = np.insert(points, 1, 0.0, axis=1)
        pixels, depth = self.camera.project(world)
        window = self.window(pixels) if depth.min() > 0.5 else None
        if window is None:
            return
        x0, x1, y0, y1 = window
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fill(mask, pixels - (x0, y0), 1)
        mask &= self.label[y0:y1, x0:x1] == label
        patch = self.colour[y0:y1, x0:x1]
        tinted = cv2.addWeighted(
            patch, 1 - opacity, np.full_like(patch, shade(colour, 1.0)), opacity, 0
        )
        cv2.copyTo(tinted, mask, patch)


def fill(image: np.ndarray, polygon: np.ndarray, colour: Colour | int) -> None:
    """Fill a polygon (n, 2) of float pixel positions in place."""
    corners = np.rint(polygon * (1 << _SHIFT)).astype(np.int32)
    value = colour if isinstance(colour, int) else tuple(colour)
    cv2.fillPoly(image, [corners], value, cv2.LINE_8, _SHIFT)


class Sprite:
    """A patch on which one object is put together before it meets the depth test as a whole."""

    def __init__(self, canvas: Canvas, window: tuple[int, int, int, int]) -> None:
        x0, x1, y0, y1 = window
        self.canvas = canvas
        self.window = window
        self.colour = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
        self.mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        self.origin = np.array([x0, y0], dtype=np.float64)

    @classmethod
    def around(cls, canvas: Canvas, points: np.ndarray, nearest: float) -> Self | None:
        """A sprite that holds the world points (n, 3).

        None if it would be out of view, hidden, or nearer than `nearest` metres.
        """
        pixels, depth = canvas.camera.project(points)
        window = canvas.window(pixels) if depth.min() > nearest else None
        if window is None:
            return None
        x0, x1, y0, y1 = window
        if not (canvas.depth[y0:y1, x0:x1] > depth.min() - _TIE).any():
            return None
        return cls(canvas, window)

    @property
    def coarse(self) -> bool:
        """Whether details would be smaller than a pixel."""
        return self.mask.shape[0] < 9 * self.canvas.camera.pixel_unit

    def local(self, points: Points) -> np.ndarray:
        """Pixels (n, 2) on this patch of world points (n, 3)."""
        return self.canvas.camera.project(np.asarray(points))[0] - self.origin

    def part(self, points: Points, colour: Colour) -> None:
        """A polygon that belongs to the object's outline."""
        polygon = self.local(points)
        fill(self.colour, polygon, colour)
        fill(self.mask, polygon, 1)

    def detail(self, points: Points, colour: Colour) -> None:
        """A polygon drawn on what is already there; it does not enlarge the object."""
        fill(self.colour, self.local(points), colour)

    def paste(self, depth: np.ndarray | float, label: int, instance: int = 0) -> None:
        self.canvas.paste(self.window, self.colour, self.mask.view(bool), depth, label, instance)


class Billboard(Sprite):
    """A flat upright object that faces the camera; its points are (across, up) in metres.

    Its depth is one number, so its pixels follow from its foot by an affine map.
    """

    depth: float  # metres, of its foot
    metre: float  # canvas pixels a metre at that depth
    foot: np.ndarray  # (2,) pixel on the patch of the point (0, 0)
    steps: np.ndarray  # (2, 2) pixels for a metre across and a metre up

    @classmethod
    def at(
        cls, canvas: Canvas, x: float, z: float, left: float, right: float, top: float
    ) -> Self | None:
        """Room for an object at ground (x, z) that reaches from left to right and 0 to top metres."""
        camera = canvas.camera
        base = np.array([x, 0.0, z])
        axis, up = camera.right, np.array([0.0, top, 0.0])
        ends = base + np.array([[left], [right]]) * axis
        corners = np.concatenate([ends, ends + up])
        board = cls.around(canvas, corners, 0.8)
        if board is not None:
            board.depth = float(camera.project(base[None])[1][0])
            board.metre = SUPERSAMPLE * camera.focal / board.depth  # canvas pixels a metre
            foot, across, above = camera.project(np.stack([base, base + axis, base + up]))[0]
            board.foot = foot - board.origin
            board.steps = np.stack([across - foot, (above - foot) / top])
        return board

    def local(self, points: Points) -> np.ndarray:
        return np.asarray(points, dtype=np.float64) @ self.steps + self.foot
