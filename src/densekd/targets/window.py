"""Which part of an image is shown, and how: what a target's geometry follows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A part of an image, resized and perhaps mirrored.

    Attributes:
        rows, columns: the part, in whole pixels of the source.
        size: (height, width) that it is resized to.
        zoom: the random scale alone (see `DepthTarget.resize`).
        flip: whether left and right are exchanged at the end.
    """

    rows: slice
    columns: slice
    size: tuple[int, int]
    zoom: float
    flip: bool

    @property
    def taken(self) -> tuple[int, int]:
        """(height, width) of the part in the source."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
