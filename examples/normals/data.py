"""The built-in street scenes with the normals of what they show, made from their depth."""

from __future__ import annotations

from pathlib import Path

from densekd.data import Sample, SceneSet
from normals.target import NormalMap, normals_of


class NormalScenes:
    """A data set of the scenes that `SceneSet` renders; see there for the arguments."""

    target = NormalMap  # the kind of truth that this set gives

    def __init__(
        self, split: str = "train", *, length: int = 64, height: int = 96, width: int = 192
    ) -> None:
        self._scenes = SceneSet(split, target="depth", length=length, height=height, width=width)
        self.classes: list[str] = []
        self.palette: list[tuple[int, int, int]] = []
        self.ignore_index = self._scenes.ignore_index
        self.channels = self._scenes.channels

    def __len__(self) -> int:
        return len(self._scenes)

    def name(self, index: int) -> str:
        return self._scenes.name(index)

    def paths(self, index: int) -> tuple[Path | None, Path | None]:
        """There are no files."""
        return None, None

    def sources(self, index: int) -> list[Path]:
        """The arguments alone decide what a sample is."""
        return []

    def read(self, index: int) -> Sample:
        sample = self._scenes.read(index)
        depth = sample.target
        return Sample(
            sample.image, NormalMap(normals_of(depth.depth, depth.intrinsics)), sample.name
        )
