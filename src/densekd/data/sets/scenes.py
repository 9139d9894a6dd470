"""The embedded scenes as a data set: rendered when asked for, with exact labels, boxes or depth."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample
from densekd.data.files import unknown_name
from densekd.errors import UserError
from densekd.scenes import BOX_CLASSES, CLASSES, PALETTE, Scene, render_scene
from densekd.targets import BoxTarget, DepthTarget

# Each split draws from a range of scene numbers of its own, so that no length makes them overlap.
_FIRST = {"train": 0, "val": 100_000_000, "test": 200_000_000}
_LENGTH = {"train": 400, "val": 100, "test": 100}
_TASKS = {"labels": "segmentation", "boxes": "detection", "depth": "depth"}
# Objects that the cache has room for; scenes have about 16, and one with more is rendered each time.
_ROOM = 64


class SceneSet:
    """A data set of procedural street scenes, the same for the same arguments on any machine.

    Args:
        split: train, val or test; disjoint at any length.
        length: the number of scenes; None means 400 for train and 100 for the others.
        target: ``"labels"`` gives class maps; ``"boxes"`` cars, persons and signs around what is seen of them, with the
            pixels seen as areas; ``"depth"`` metres along the optical axis (0 in the sky) and the camera.
        seed: the seed of the scenes' random numbers.
        height, width: the size of an image in pixels.
        labelled: only so many scenes, the first ones, keep their target. The others become unlabelled samples (target
            None) with `allow_unlabelled`, which may be all (0), and are left out without it. None keeps all targets.
        allow_unlabelled: see `labelled`, without which every scene has a target.
        cache: keep rendered scenes in memory (4 bytes a pixel, 7 with depth), shared with forked loader workers.

    Raises:
        UserError: the split or target is unknown; the length is below 1; `labelled` is outside of the range from 1 (or
            0, where unlabelled scenes are allowed) to length, or is missing where unlabelled scenes are allowed.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        target: str = "labels",
        length: int | None = None,
        seed: int = 0,
        height: int = 128,
        width: int = 256,
        labelled: int | None = None,
        allow_unlabelled: bool = False,
        cache: bool = True,
    ) -> None:
        if split not in _FIRST:
            raise unknown_name("split of the scenes", split, _FIRST)
        if target not in _TASKS:
            raise unknown_name("target of the scenes", target, _TASKS)
        length = _LENGTH[split] if length is None else length
        if not 1 <= length <= 100_000_000:
            raise UserError(f"`length` is {length}; expected 1 to 100 million scenes")
        least = 0 if allow_unlabelled else 1
        if labelled is not None and not least <= labelled <= length:
            raise UserError(
                f"`labelled` is {labelled}; expected {least} to {length}, the number of scenes"
            )
        if labelled is None and allow_unlabelled:
            raise UserError(
                "`allow_unlabelled` is on, and every scene has a label; leave it out, or set `labelled` to the number "
                "of scenes that keep theirs"
            )
        self.task = _TASKS[target]
        shown = {"labels": CLASSES, "boxes": BOX_CLASSES, "depth": ()}[target]
        self.classes = list(shown)
        # Places in CLASSES, as in the written annotations.
        self.category_ids = [CLASSES.index(name) for name in shown]
        colours = [PALETTE[i] for i in self.category_ids]
        self.palette = [(int(r), int(g), int(b)) for r, g, b in colours]
        self.ignore_index = IGNORE_INDEX
        self.channels = 3
        self.split = split
        self._labelled = length if labelled is None else labelled
        self._length = length if allow_unlabelled else self._labelled
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
        """None twice: a scene has no files."""
        return None, None

    def sources(self, index: int) -> list[Path]:
        """No file: the arguments alone decide what a scene is."""
        return []

    def read(self, index: int) -> Sample:
        """The image is (height, width, 3) uint8, the target (height, width) uint8, a `BoxTarget` or a `DepthTarget`."""
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length}")
        sample = self._with_target(index)
        return sample if index < self._labelled else replace(sample, target=None)

    def _with_target(self, index: int) -> Sample:
        if self._cache is None:
            return self._sample(self._render(index), index)
        if not self._ready[index]:
            scene = self._render(index)
            if not self._store(self._cache[index], scene):
                return self._sample(scene, index)
            # Set last: another process that renders the same scene meanwhile writes the same bytes.
            self._ready[index] = 1
        entry = self._cache[index]
        return Sample(entry["image"].copy(), self._stored_target(entry, index), self.name(index))

    def _render(self, index: int) -> Scene:
        height, width = self._size
        return render_scene(self._seed, self._number(index), height=height, width=width)

    def _number(self, index: int) -> int:
        return _FIRST[self.split] + index

    def _sample(self, scene: Scene, index: int) -> Sample:
        if self.task == "segmentation":
            return Sample(scene.image, scene.labels, self.name(index))
        if self.task == "depth":
            depth = DepthTarget(scene.depth, _four(scene.intrinsics))
            return Sample(scene.image, depth, self.name(index))
        boxes = self._boxes(scene.boxes, scene.box_labels, _seen_pixels(scene), index)
        return Sample(scene.image, boxes, self.name(index))

    def _boxes(
        self, boxes: np.ndarray, labels: np.ndarray, areas: np.ndarray, index: int
    ) -> BoxTarget:
        places = np.array([self.category_ids.index(label) for label in labels], dtype=np.int64)
        return BoxTarget(boxes, places, np.zeros(len(boxes)), areas, self._number(index))

    def _store(self, entry: Any, scene: Scene) -> bool:
        """Whether the scene fits into the cache's entry, which then holds it."""
        if len(scene.boxes) > _ROOM and self.task == "detection":
            return False
        entry["image"] = scene.image
        if self.task == "segmentation":
            entry["labels"] = scene.labels
        elif self.task == "depth":
            entry["depth"], entry["intrinsics"] = scene.depth, scene.intrinsics
        else:
            entry["count"] = count = len(scene.boxes)
            entry["boxes"][:count] = scene.boxes
            entry["box_labels"][:count] = scene.box_labels
            entry["areas"][:count] = _seen_pixels(scene)
        return True

    def _stored_target(self, entry: Any, index: int) -> Any:
        if self.task == "segmentation":
            return entry["labels"].copy()
        if self.task == "depth":
            return DepthTarget(entry["depth"].copy(), _four(entry["intrinsics"]))
        kept = slice(entry["count"])
        boxes, labels, areas = entry["boxes"][kept], entry["box_labels"][kept], entry["areas"][kept]
        return self._boxes(boxes.copy(), labels, areas.copy(), index)

    def _open_cache(self) -> None:
        self._cache: np.ndarray | None = None
        if self._keep:
            # An anonymous map is shared by forked workers, takes no space in /dev/shm, which is small in
            # containers, and no memory before it is written to.
            form = self._entry_form()
            memory = mmap.mmap(-1, self._length * form.itemsize)
            self._cache = np.frombuffer(memory, dtype=form)
            self._ready = np.frombuffer(mmap.mmap(-1, self._length), dtype=np.uint8)

    def _entry_form(self) -> np.dtype:
        rest: dict[str, list[tuple]] = {
            "segmentation": [("labels", np.uint8, self._size)],
            "depth": [("depth", np.float32, self._size), ("intrinsics", np.float64, (4,))],
            "detection": [
                ("count", np.int32),
                ("boxes", np.float32, (_ROOM, 4)),
                ("box_labels", np.int64, (_ROOM,)),
                ("areas", np.float32, (_ROOM,)),
            ],
        }
        return np.dtype([("image", np.uint8, (*self._size, 3)), *rest[self.task]])

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned, not forked, starts a cache of its own.
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_ready")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_cache()


def _seen_pixels(scene: Scene) -> np.ndarray:
    """(n,) pixels in which each box's object is seen."""
    return np.bincount(scene.instances[scene.instances > 0], minlength=len(scene.boxes) + 1)[1:]


def _four(values: Any) -> tuple[float, float, float, float]:
    fx, fy, cx, cy = (float(value) for value in values)
    return fx, fy, cx, cy
