"""The zip file that Cityscapes' test server takes: labelId PNGs, checked against the images they are of."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densekd.data.files import read_labels
from densekd.data.sets.cityscapes import CLASSES, to_label_ids
from densekd.errors import UserError
from densekd.ops.files import replacing
from densekd.ops.names import first_few
from densekd.tasks import Task
from densekd.workflows.predict_inputs import Input

KIND = "label_ids"  # the folder of the PNGs
ZIP = "submission.zip"
# {city}_{sequence}_{frame}_leftImg8bit.png
NAME = re.compile(r"[a-z-]+_\d{6}_\d{6}_leftImg8bit\.png")
SIZE = (2048, 1024)  # width, height
SPLITS = {"test": 1525, "val": 500, "train": 2975}


def label_ids(task: Task, image: np.ndarray, answer: Any) -> np.ndarray:
    """(H, W) uint8 labelIds."""
    return to_label_ids(np.asarray(answer), task.classes)


def check_submission(task: Task, inputs: Sequence[Input]) -> None:
    """What can be said before any work.

    Raises:
        UserError: the classes are not Cityscapes', or a file is not named as an image of it, or named twice.
    """
    unknown = [name for name in task.classes if name not in CLASSES]
    if task.name != "segmentation" or unknown or not task.classes:
        raise UserError(
            f"--submission cityscapes: wants a segmentation network with Cityscapes' classes; this is {task.name}"
            + (f" with {first_few(unknown)}" if unknown else "")
        )
    wrong = [str(item.path) for item in inputs if not NAME.fullmatch(item.path.name)]
    if wrong:
        raise UserError(
            f"--submission cityscapes: not named as Cityscapes' images (CITY_000000_000000_leftImg8bit.png): "
            f"{first_few(wrong)}"
        )
    names = [item.path.name for item in inputs]
    twice = (
        sorted({name for name in names if names.count(name) > 1})
        if len(set(names)) < len(names)
        else []
    )
    if twice:
        raise UserError(f"--submission cityscapes: given twice: {first_few(twice)}")
    sizes = {}
    for item in inputs:
        with Image.open(item.path) as image:
            sizes[item.path] = image.size
    small = [f"{path} ({w}x{h})" for path, (w, h) in sizes.items() if (w, h) != SIZE]
    if small:
        raise UserError(
            f"--submission cityscapes: the server takes {SIZE[0]}x{SIZE[1]}; of another size: {first_few(small)}"
        )


def write_submission(out: Path, task: Task, inputs: Sequence[Input]) -> list[str]:
    """Check every PNG and zip them; returns lines for people.

    Raises:
        UserError: a PNG is missing, of another size, or has an id that none of the classes has.
    """
    allowed = {int(v) for v in to_label_ids(np.arange(len(task.classes)), task.classes)}
    files = [(item, out / KIND / item.output) for item in inputs]
    for item, path in files:
        if not path.is_file():
            raise UserError(f"--submission: {item.path} has no answer ({path}); nothing was zipped")
        labels = read_labels(path)
        if labels.shape != (SIZE[1], SIZE[0]):
            raise UserError(
                f"--submission: {path} is {labels.shape[1]}x{labels.shape[0]}; nothing was zipped"
            )
        strange = sorted({int(v) for v in np.unique(labels)} - allowed)
        if strange:
            raise UserError(
                f"--submission: {path} has ids {first_few(strange)}, which no class has; nothing was zipped"
            )
    with replacing(out / ZIP) as neighbour, zipfile.ZipFile(neighbour, "w") as archive:
        for item, path in files:
            archive.write(path, item.path.name.replace("_leftImg8bit.png", "_pred_labelIds.png"))
    split = next((n for n in SPLITS if all(n in item.path.parts for item in inputs)), None)
    lines = [
        f"{len(files)} images zipped in {out / ZIP}: names, sizes and ids are as the server wants them"
    ]
    if split is None or SPLITS[split] != len(files):
        whole = SPLITS["test" if split is None else split]
        lines.append(
            f"the whole {split or 'test'} split has {whole} images: the server refuses a part of it"
        )
    return lines
