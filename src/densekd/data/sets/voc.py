"""PASCAL VOC 2012 segmentation: 21 classes with background, 255 = border; plus the SBD ``trainaug`` list."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from densekd.data.files import inside, read_list, require_folder, unknown_name
from densekd.data.paired_files import FileOptions, PairedFiles
from densekd.errors import DataError

CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
]  # fmt: skip


class VOC(PairedFiles):
    """One split of VOC 2012.

    Args:
        root: ``VOC2012``, ``VOCdevkit`` or the folder that holds it.
        split: a list in ``ImageSets/Segmentation``: train, val, trainval, or trainaug, which takes its
            labels from ``SegmentationClassAug``. A line is an image id, or image and label path
            (relative to VOC2012) as DeepLab's lists have them.
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        DataError: the root, the list or files are missing.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        **files: Unpack[FileOptions],
    ) -> None:
        root = require_folder(Path(root), "VOC2012 with JPEGImages/ and SegmentationClass/")
        for inner in ("VOC2012", "VOCdevkit/VOC2012"):
            if not (root / "JPEGImages").is_dir() and (root / inner / "JPEGImages").is_dir():
                root = root / inner
        require_folder(root / "JPEGImages", "the images of VOC2012")
        lists = require_folder(root / "ImageSets" / "Segmentation", "the split lists of VOC2012")
        if not (lists / f"{split}.txt").is_file():
            raise unknown_name(
                "VOC split", split, [path.stem for path in lists.glob("*.txt")], lists
            )
        labels = "SegmentationClassAug" if split.endswith("aug") else "SegmentationClass"
        super().__init__(
            [
                _pair(
                    root, labels, words, lists / f"{split}.txt", files.get("allow_outside", False)
                )
                for words in read_list(lists / f"{split}.txt")
            ],
            classes=CLASSES,
            ignored=[255],
            root=root,
            **files,
        )


def _pair(
    root: Path, labels: str, words: list[str], list_file: Path, allow_outside: bool
) -> tuple[Path, Path | None]:
    if len(words) == 1:
        names = [f"JPEGImages/{words[0]}.jpg", f"{labels}/{words[0]}.png"]
    elif len(words) == 2:
        names = [word.lstrip("/") for word in words]
    else:
        raise DataError(
            f"{list_file} has a line of {len(words)} words; expected an id or two paths"
        )
    image, label = (inside(root, name, list_file, allow_outside) for name in names)
    return image, label
