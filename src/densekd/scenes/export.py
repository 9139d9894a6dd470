"""Scenes written in the Cityscapes layout, so that the real readers read them."""

import functools
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from densekd.errors import UserError
from densekd.scenes.classes import (
    BOX_CLASSES,
    CITYSCAPES_EGO_VEHICLE_ID,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_TRAIN_IDS,
    CLASSES,
    IGNORE,
    PALETTE,
)
from densekd.scenes.render import Scene, render_scene

# KITTI's convention: 16-bit PNG, 1/256 m a step, 0 invalid; the largest value is 255.99 m.
DEPTH_STEPS_PER_METRE = 256

_CITY = "scenes"

_README = """\
densekd street scenes
=====================

Procedural pictures with exact annotations, in the layout of Cityscapes.
Made by densekd.scenes.write_cityscapes: the same settings give the same files.

seed: {seed}
size: {height} x {width} pixels (height x width)
splits: {splits}

leftImg8bit/SPLIT/scenes/*_leftImg8bit.png      RGB picture
gtFine/SPLIT/scenes/*_gtFine_labelIds.png       Cityscapes ids; 1 (ego vehicle) is not evaluated
gtFine/SPLIT/scenes/*_gtFine_labelTrainIds.png  Cityscapes' 19 train ids; 255 is ignored
gtFine/SPLIT/scenes/*_gtFine_color.png          the labels in Cityscapes' colours
depth/SPLIT/scenes/*_depth.png                  16 bit; metres = value / 256; 0 is invalid
                                                (sky, own bonnet); along the optical axis
camera/SPLIT/scenes/*_camera.json               fx, fy, cx, cy in pixels
annotations/instances_SPLIT.json                COCO boxes of the visible parts of {things}

classes: {classes}
"""


def write_cityscapes(
    root: str | Path,
    *,
    splits: Mapping[str, int],
    seed: int = 0,
    height: int = 128,
    width: int = 256,
    depth: bool = True,
    boxes: bool = True,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write scenes with labels, and if asked depth and boxes, under an empty or new folder.

    Scenes are numbered through all splits in the order given, so no scene is in two of them.

    Args:
        root: folder to write to.
        splits: name and number of scenes of each split, such as {"train": 400, "val": 100}.
        seed: the world; the same seed gives the same bytes.
        height, width: size in pixels.
        depth: write 16-bit depth and the intrinsics.
        boxes: write COCO annotations.
        workers: processes that render; 0 renders in this one. The files are the same.
        progress: called with the number of scenes just written.
    """
    root = Path(root)
    _check(root, splits)
    first = 0
    with _mapper(workers) as mapped:
        for split, count in splits.items():
            images, annotations = [], []
            jobs = [
                (root, split, seed, i, height, width, depth) for i in range(first, first + count)
            ]
            for image, rows in mapped(_write_one, jobs):
                images.append(image)
                annotations += [
                    {"id": len(annotations) + i, **row} for i, row in enumerate(rows, 1)
                ]
                if progress is not None:
                    progress(1)
            first += count
            if boxes:
                _write_coco(root / "annotations" / f"instances_{split}.json", images, annotations)
    text = _README.format(
        seed=seed,
        height=height,
        width=width,
        splits=", ".join(f"{name} {count}" for name, count in splits.items()),
        things=", ".join(BOX_CLASSES),
        classes=", ".join(CLASSES),
    )
    (root / "README.txt").write_text(text, encoding="utf-8")


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable]]:
    """An ordered map, in this process or over several."""
    if workers < 1:
        yield map
        return
    # Spawned, not forked: a caller may hold threads (a progress bar, OpenMP) that a fork would not carry over.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield functools.partial(pool.imap, chunksize=8)


def _write_one(job: tuple[Path, str, int, int, int, int, bool]) -> tuple[dict, list[dict]]:
    """Render and write one scene; returns its COCO image and boxes (without ids)."""
    root, split, seed, index, height, width, depth = job
    scene = render_scene(seed, index, height=height, width=width)
    name = f"scenes_{index:06d}_000000"
    _write_scene(root, split, name, scene, depth=depth)
    file_name = f"leftImg8bit/{split}/{_CITY}/{name}_leftImg8bit.png"
    image = {"id": index, "file_name": file_name, "height": height, "width": width}
    return image, _coco_boxes(scene, index)


def _check(root: Path, splits: Mapping[str, int]) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; give the name of a new or empty folder.")
    if root.is_dir() and any(root.iterdir()):
        raise UserError(
            f"{root} is not empty; scenes are written only into a new or empty folder, "
            "so that nothing of yours is overwritten."
        )
    if not splits:
        raise UserError('No splits were given; give at least one, such as {"train": 400}.')
    for name, count in splits.items():
        if count < 1:
            raise UserError(f"Split {name!r} has {count} scenes; it must have at least 1.")
        if not name or name in (".", "..") or any(mark in name for mark in "/\\"):
            raise UserError(f"{name!r} cannot name a split; use plain letters such as 'train'.")


def _table(values: tuple[int, ...], ignore: int) -> np.ndarray:
    """A (256,) look-up table from our labels to another set's; 255 becomes `ignore`."""
    table = np.zeros(256, np.uint8)
    table[: len(values)] = values
    table[IGNORE] = ignore
    return table


_TO_LABEL_IDS = _table(CITYSCAPES_LABEL_IDS, CITYSCAPES_EGO_VEHICLE_ID)
_TO_TRAIN_IDS = _table(CITYSCAPES_TRAIN_IDS, IGNORE)


def _write_scene(root: Path, split: str, name: str, scene: Scene, *, depth: bool) -> None:
    def save(kind: str, suffix: str, pixels: np.ndarray) -> None:
        folder = root / kind / split / _CITY
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}_{suffix}.png")

    colour = np.zeros((256, 3), np.uint8)
    colour[: len(PALETTE)] = PALETTE
    save("leftImg8bit", "leftImg8bit", scene.image)
    save("gtFine", "gtFine_labelIds", _TO_LABEL_IDS[scene.labels])
    save("gtFine", "gtFine_labelTrainIds", _TO_TRAIN_IDS[scene.labels])
    save("gtFine", "gtFine_color", colour[scene.labels])
    if depth:
        steps = np.rint(scene.depth * DEPTH_STEPS_PER_METRE).clip(0, 65535)
        save("depth", "depth", steps.astype(np.uint16))
        folder = root / "camera" / split / _CITY
        folder.mkdir(parents=True, exist_ok=True)
        camera = dict(zip(("fx", "fy", "cx", "cy"), map(float, scene.intrinsics), strict=True))
        (folder / f"{name}_camera.json").write_text(json.dumps(camera), encoding="utf-8")


def _coco_boxes(scene: Scene, image_id: int) -> list[dict]:
    rows = []
    for number, (box, label) in enumerate(zip(scene.boxes, scene.box_labels, strict=True)):
        x0, y0, x1, y1 = (float(value) for value in box)
        rows.append(
            {
                "image_id": image_id,
                "category_id": int(label),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int((scene.instances == number + 1).sum()),
                "iscrowd": 0,
            }
        )
    return rows


def _write_coco(path: Path, images: list[dict], annotations: list[dict]) -> None:
    """Category ids are positions in CLASSES, so they are sparse, as COCO's own are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": CLASSES.index(name), "name": name} for name in BOX_CLASSES]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
