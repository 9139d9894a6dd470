"""Cityscapes: ``leftImg8bit/{split}/{city}/*_leftImg8bit.png`` with ``gtFine`` labels, 19 classes.

The published label files hold labelIds (0-33); training uses 19 of them, numbered as trainIds. Both
kinds of files are read, labelIds being mapped on the fly, and `to_label_ids` maps predictions back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np

from densekd.data.base import IGNORE_INDEX
from densekd.data.files import inside, read_list, require_folder, unknown_name
from densekd.data.paired_files import FileOptions, PairedFiles
from densekd.errors import DataError


class Label(NamedTuple):
    """One row of the official table; its position among `LABELS` is the trainId."""

    name: str
    label_id: int
    colour: tuple[int, int, int]


LABELS = (
    Label("road", 7, (128, 64, 128)),
    Label("sidewalk", 8, (244, 35, 232)),
    Label("building", 11, (70, 70, 70)),
    Label("wall", 12, (102, 102, 156)),
    Label("fence", 13, (190, 153, 153)),
    Label("pole", 17, (153, 153, 153)),
    Label("traffic light", 19, (250, 170, 30)),
    Label("traffic sign", 20, (220, 220, 0)),
    Label("vegetation", 21, (107, 142, 35)),
    Label("terrain", 22, (152, 251, 152)),
    Label("sky", 23, (70, 130, 180)),
    Label("person", 24, (220, 20, 60)),
    Label("rider", 25, (255, 0, 0)),
    Label("car", 26, (0, 0, 142)),
    Label("truck", 27, (0, 0, 70)),
    Label("bus", 28, (0, 60, 100)),
    Label("train", 31, (0, 80, 100)),
    Label("motorcycle", 32, (0, 0, 230)),
    Label("bicycle", 33, (119, 11, 32)),
)
CLASSES = [label.name for label in LABELS]
PALETTE = [label.colour for label in LABELS]
_SUFFIX = {"labelids": "_gtFine_labelIds.png", "trainids": "_gtFine_labelTrainIds.png"}
_LAYOUT = "the Cityscapes folder with leftImg8bit/ and gtFine/"


class Cityscapes(PairedFiles):
    """One split of Cityscapes, or of anything written in its layout.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: a folder under ``leftImg8bit``: train, val, test. Images of test may lack labels.
        labels: which files to read: ``"labelids"`` (the published ones) or ``"trainids"``.
        list_file: an ``.lst`` file with image and label path a line, relative to `root` (or its own
            path relative to `root`); then `split` is not looked at. `labels` says what its files hold.
        classes: names of the classes to keep, in this order; the others become ignore_index.
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        DataError: the root, the split, the list or files are missing.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        labels: str = "labelids",
        list_file: str | Path | None = None,
        classes: Sequence[str] | None = None,
        **files: Unpack[FileOptions],
    ) -> None:
        root = require_folder(Path(root), _LAYOUT)
        labels = labels.lower()
        if labels not in _SUFFIX:
            raise unknown_name("kind of Cityscapes labels", labels, _SUFFIX)
        listed = list_file is not None
        if list_file is not None:
            pairs = _listed(root, Path(list_file), files.get("allow_outside", False))
        else:
            pairs = _scanned(root, split, _SUFFIX[labels])
        if split == "test" and not listed:
            files["allow_unlabelled"] = True
        kept = _kept(classes)
        # In label files, -1 (licence plate) is stored as 255.
        ids = [row.label_id for row in LABELS] if labels == "labelids" else list(range(19))
        table = {ids[train_id]: index for index, train_id in enumerate(kept)}
        legal = {*(range(34) if labels == "labelids" else range(19)), IGNORE_INDEX}
        super().__init__(
            pairs,
            classes=[CLASSES[train_id] for train_id in kept],
            palette=[PALETTE[train_id] for train_id in kept],
            table=table,
            ignored=legal - set(table),
            root=root,
            **files,
        )


def to_label_ids(prediction: np.ndarray, classes: Sequence[str] | None = None) -> np.ndarray:
    """Class indices -> labelIds, as the evaluation server and cityscapesscripts want them.

    Args:
        prediction: (H, W) integer class indices; 255 becomes 0 (unlabeled).
        classes: the same subset that the reader was given.

    Returns:
        (H, W) uint8.
    """
    table = np.zeros(256, dtype=np.uint8)
    for index, train_id in enumerate(_kept(classes)):
        table[index] = LABELS[train_id].label_id
    return table[np.asarray(prediction)]


def _kept(classes: Sequence[str] | None) -> list[int]:
    """Names -> trainIds, in the order given."""
    if classes is None:
        return list(range(len(CLASSES)))
    for name in classes:
        if name not in CLASSES:
            raise unknown_name("Cityscapes class", name, CLASSES)
    if len(set(classes)) != len(classes) or not classes:
        raise DataError(f"`classes` must be a list of different names, got {list(classes)}")
    return [CLASSES.index(name) for name in classes]


def _scanned(root: Path, split: str, suffix: str) -> list[tuple[Path, Path | None]]:
    images = require_folder(root / "leftImg8bit", _LAYOUT) / split
    if not images.is_dir():
        splits = [path.name for path in images.parent.iterdir() if path.is_dir()]
        raise unknown_name("Cityscapes split", split, splits, images.parent)
    ending = "_leftImg8bit.png"
    files = sorted(images.glob(f"*/*{ending}"))
    if not files:
        raise DataError(f"{images} holds no */*{ending} files. Check `root`.")
    labels = root / "gtFine" / split
    return [
        (file, labels / file.parent.name / (file.name.removesuffix(ending) + suffix))
        for file in files
    ]


def _listed(root: Path, list_file: Path, allow_outside: bool) -> list[tuple[Path, Path | None]]:
    path = list_file if list_file.is_file() else root / list_file
    if not path.is_file():
        raise DataError(f"list file {list_file} does not exist, nor does {path}")
    pairs: list[tuple[Path, Path | None]] = []
    for words in read_list(path):
        if len(words) > 2:
            raise DataError(
                f"{path} has a line of {len(words)} words; expected image and label path"
            )
        image, *label = (inside(root, word, path, allow_outside) for word in words)
        pairs.append((image, label[0] if label else None))
    return pairs
