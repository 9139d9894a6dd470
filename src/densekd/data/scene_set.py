"""The embedded scenes as a data set: rendered when asked for, exact labels, nothing on disk."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample, unknown_name
from densekd.data.scenes import CLASSES, PALETTE, render_scene
from densekd.errors import UserError

# Each split draws from a range of scene numbers of its own, so that no length makes them overlap.
_FIRST = {"train": 0, "val": 100_000_000, "test": 200_000_000}
_LENGTH = {"train": 400, "val": 100, "test": 100}


class SceneSet:
    """A `SegmentationSet` of procedural street scenes, the same for the same arguments on any machine.

    Args:
        split: train, val or test; disjoint at any length.
        length: scenes; None means 400 for train and 100 for the others.
        seed: of the scenes.
        height, width: of the images.
        cache: keep rendered scenes in memory (4 bytes a pixel), shared with forked loader workers.

    Raises:
        UserError: an unknown split, or a length below 1.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        length: int | None = None,
        seed: int = 0,
        height: int = 128,
        width: int = 256,
        cache: bool = True,
    ) -> None:
        if split not in _FIRST:
            raise unknown_name("split of the scenes", split, _FIRST)
        length = _LENGTH[split] if length is None else length
        if not 1 <= length <= 100_000_000:
            raise UserError(f"length is {length}; expected 1 to 100 million scenes")
        self.classes = list(CLASSES)
        self.palette = [(int(r), int(g), int(b)) for r, g, b in PALETTE]
        self.ignore_index = IGNORE_INDEX
        self.channels = 3
        self.split = split
        self._length = length
        self._seed = seed
        self._size = (height, width)
        self._keep = cache
        self._open_cache()

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        return f"{self.split}/scene_{index:06d}"

    def paths(self, index: int) -> tuple[Path | None, Path | None]:
        """There are no files."""
        return None, None

    def read(self, index: int) -> Sample:
        """Image (height, width, 3) uint8 and labels (height, width) uint8."""
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length}")
        if self._cache is None:
            return Sample(*self._render(index), self.name(index))
        entry = self._cache[index]  # (H, W, 4): image, labels
        if not self._ready[index]:
            entry[..., :3], entry[..., 3] = self._render(index)
            # Set last: another process that renders the same scene meanwhile writes the same bytes.
            self._ready[index] = 1
        return Sample(entry[..., :3].copy(), entry[..., 3].copy(), self.name(index))

    def _render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        height, width = self._size
        scene = render_scene(self._seed, _FIRST[self.split] + index, height=height, width=width)
        return scene.image, scene.labels

    def _open_cache(self) -> None:
        self._cache: np.ndarray | None = None
        if self._keep:
            # An anonymous map is shared by forked workers, takes no space in /dev/shm, which is small in
            # containers, and no memory before it is written to.
            shape = (self._length, *self._size, 4)
            entries = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), dtype=np.uint8)
            self._cache = entries.reshape(shape)
            self._ready = np.frombuffer(mmap.mmap(-1, self._length), dtype=np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned, not forked, starts a cache of its own.
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_ready")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_cache()
