"""ADE20K scene parsing (the 2016 challenge): 150 classes, label files hold 0 = unlabelled and 1-150."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from densekd.data.files import require_folder, unknown_name
from densekd.data.paired_files import FileOptions, PairedFiles
from densekd.errors import DataError

_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step,
tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock,
flag
"""
CLASSES = [" ".join(name.split()) for name in _NAMES.split(",")]
_SPLITS = {"train": "training", "val": "validation"}


class ADE20K(PairedFiles):
    """One split of ADE20K-150.

    Args:
        root: ``ADEChallengeData2016`` or the folder that holds it.
        split: train or val (or the folders' own names, training and validation).
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        DataError: the root, the split or files are missing.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        **files: Unpack[FileOptions],
    ) -> None:
        root = require_folder(Path(root), "ADEChallengeData2016 with images/ and annotations/")
        if not (root / "images").is_dir() and (root / "ADEChallengeData2016").is_dir():
            root = root / "ADEChallengeData2016"
        images = require_folder(root / "images", "the images of ADEChallengeData2016")
        folder = _SPLITS.get(split, split)
        if not (images / folder).is_dir():
            splits = [path.name for path in images.iterdir() if path.is_dir()]
            raise unknown_name("ADE20K split", split, {*_SPLITS, *splits}, images)
        found = sorted((images / folder).glob("*.jpg"))
        if not found:
            raise DataError(f"{images / folder} holds no .jpg files. Check `root`.")
        labels = root / "annotations" / folder
        super().__init__(
            [(file, labels / f"{file.stem}.png") for file in found],
            classes=CLASSES,
            table={index + 1: index for index in range(len(CLASSES))},
            ignored=[0],
            root=root,
            **files,
        )
