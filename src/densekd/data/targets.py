"""What is known about one image in detection and depth, as arrays that move with the image's geometry.

A target goes through `crop`, `resize`, `flip` and `pad` as its image does; each gives a new target. Class maps
are plain arrays and need none of this. Two grids meet here and agree: box corners are points of the plane in
which pixel j covers [j, j + 1]; intrinsics put pixel j at its centre, the number j itself (OpenCV's convention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from densekd.types import Boxes, DepthMaps

Intrinsics = tuple[float, float, float, float]
LEAST_SIDE = 1e-3  # pixels; float32 knows coordinates of large images to a few ten-thousandths
LEAST_VISIBLE = 0.25  # of a box's area, for the object to be still worth finding


@dataclass
class BoxTarget:
    """The objects of one image.

    Attributes:
        boxes: (n, 4) float32 XYXY in pixels.
        labels: (n,) int64 class indices.
        ignored: (n,) bool: crowds (COCO) and difficult objects (VOC).
        areas: (n,) float32 in pixels: of the object's mask where it is known, else of the box.
        image_id: the annotation file's own; -1 where there is none.

    Raises:
        ValueError: arrays of different length.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray
    image_id: int

    def __post_init__(self) -> None:
        self.boxes = np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)
        self.labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        self.ignored = np.asarray(self.ignored, dtype=bool).reshape(-1)
        self.areas = np.asarray(self.areas, dtype=np.float32).reshape(-1)
        lengths = [len(self.boxes), len(self.labels), len(self.ignored), len(self.areas)]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"boxes, labels, ignored and areas have {lengths} entries; expected one of each per object"
            )

    @classmethod
    def empty(cls, image_id: int = -1) -> BoxTarget:
        """An image without objects."""
        return cls(np.empty((0, 4)), np.empty(0), np.empty(0), np.empty(0), image_id)

    def __len__(self) -> int:
        return len(self.boxes)

    def crop(
        self, top: int, left: int, height: int, width: int, least_visible: float = LEAST_VISIBLE
    ) -> BoxTarget:
        """Objects in a window, clipped to it, in its own pixels; areas shrink by the share that is cut off.

        An object, ignored or not, of whose box less than `least_visible` is left, or less than one pixel in width
        or height, is dropped: what is left of it is taken for background.
        """
        shifted = self.boxes - _float32(left, top, left, top)
        clipped = _clipped(shifted, (height, width))
        share = box_areas(clipped) / np.maximum(box_areas(shifted), np.finfo(np.float32).tiny)
        keep = (share >= least_visible) & (_sides(clipped).min(axis=1, initial=np.inf) >= 1)
        return BoxTarget(
            clipped[keep],
            self.labels[keep],
            self.ignored[keep],
            (self.areas * share)[keep],
            self.image_id,
        )

    def resize(
        self, from_size: tuple[int, int], to_size: tuple[int, int], zoom: float = 1.0
    ) -> BoxTarget:
        """The image goes from one (height, width) to another; `zoom` makes no difference to boxes.

        A box of which `LEAST_SIDE` or less is left in width or height is dropped: regression losses divide by sides.
        """
        y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
        scaled = _clipped(self.boxes * _float32(x, y, x, y), to_size)
        keep = _sides(scaled).min(axis=1, initial=np.inf) > LEAST_SIDE
        return BoxTarget(
            scaled[keep],
            self.labels[keep],
            self.ignored[keep],
            (self.areas * (x * y))[keep],
            self.image_id,
        )

    def flip(self, width: int) -> BoxTarget:
        """Mirrored left and right, in an image so wide."""
        x0, y0, x1, y1 = self.boxes.T
        return replace(self, boxes=np.stack([width - x1, y0, width - x0, y1], axis=1))

    def pad(self, size: tuple[int, int]) -> BoxTarget:
        """Unchanged: images are padded at the bottom and on the right."""
        return self


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


def empty_target(task: str, size: tuple[int, int], ignore_index: int) -> object:
    """The target of an image (height, width) of which nothing is known: all ignored, no objects, no depth."""
    if task == "detection":
        return BoxTarget.empty()
    if task == "depth":
        return DepthTarget.empty(size)
    return np.full(size, ignore_index, dtype=np.uint8 if 0 <= ignore_index <= 255 else np.int16)


def to_boxes(target: BoxTarget, size: tuple[int, int]) -> Boxes:
    """As tensors; `size` is the image's (height, width) without padding."""
    return Boxes(
        torch.from_numpy(np.ascontiguousarray(target.boxes)),
        torch.from_numpy(target.labels),
        torch.from_numpy(target.ignored),
        torch.from_numpy(target.areas),
        target.image_id,
        size,
    )


def to_depth_maps(targets: Sequence[DepthTarget]) -> DepthMaps:
    """Targets of one size as tensors; intrinsics that are not known become NaN."""
    unknown = (float("nan"),) * 4
    return DepthMaps(
        torch.from_numpy(
            np.stack([target.depth for target in targets])[:, None].astype(np.float32)
        ),
        torch.tensor([target.intrinsics or unknown for target in targets], dtype=torch.float32),
    )


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) XYXY -> (n,); 0 for a box that is inside out."""
    return np.maximum(_sides(boxes), 0).prod(axis=1)


def _sides(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) XYXY -> (n, 2) widths and heights."""
    return boxes[:, 2:] - boxes[:, :2]


def _clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.clip(boxes, 0, _float32(width, height, width, height))


def _float32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)
