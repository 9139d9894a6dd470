"""CamVid with 11 classes, in the SegNet layout: 480×360 PNG, ``{split}.txt`` lists, labels 0-10 and 11 = unlabelled."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from densekd.data.files import inside, read_list, require_folder, unknown_name
from densekd.data.paired_files import FileOptions, PairedFiles
from densekd.errors import DataError

CLASSES = [
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
]  # fmt: skip
PALETTE = [
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
]  # fmt: skip
UNLABELLED = 11


class CamVid(PairedFiles):
    """One split of CamVid.

    Args:
        root: the folder with ``train.txt``, ``train/``, ``trainannot/`` and so on.
        split: the name of a list file. Each line has an image path and a label path, published as
            ``/SegNet/CamVid/train/x.png``: only the last two parts count and are looked up in `root`.
            A line with an image alone is an unlabelled image.
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
        root = require_folder(
            Path(root), "the CamVid folder with train.txt, train/ and trainannot/"
        )
        list_file = root / f"{split}.txt"
        if not list_file.is_file():
            lists = [path.stem for path in root.glob("*.txt")]
            if not lists:
                raise DataError(
                    f"{root} has no {split}.txt; expected the SegNet layout of CamVid: {split}.txt with an "
                    "image path and a label path a line. Check `root`."
                )
            raise unknown_name("CamVid split", split, lists, root)
        super().__init__(
            [
                _pair(root, words, list_file, files.get("allow_outside", False))
                for words in read_list(list_file)
            ],
            classes=CLASSES,
            palette=PALETTE,
            ignored=[UNLABELLED, 255],
            root=root,
            **files,
        )


def _pair(
    root: Path, words: list[str], list_file: Path, allow_outside: bool
) -> tuple[Path, Path | None]:
    if len(words) > 2:
        raise DataError(
            f"{list_file} has a line of {len(words)} words; expected image and label path"
        )
    names = [Path(*Path(word).parts[-2:]) for word in words]
    paths = [inside(root, name, list_file, allow_outside) for name in names]
    return paths[0], paths[1] if len(paths) == 2 else None
