"""IDD Lite: Indian streets at 320×227, 7 classes: ``leftImg8bit/{split}/{drive}/*_image.jpg`` and ``gtFine`` labels."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from densekd.data.files import require_folder, unknown_name
from densekd.data.paired_files import FileOptions, PairedFiles
from densekd.errors import DataError, UserError

CLASSES = [
    "drivable", "non-drivable", "living things", "vehicles", "roadside objects", "far objects", "sky",
]  # fmt: skip
PALETTE = [
    (128, 64, 128), (244, 35, 232), (220, 20, 60), (0, 0, 230), (220, 190, 40), (70, 70, 70),
    (70, 130, 180),
]  # fmt: skip
_LAYOUT = "the IDD Lite folder with leftImg8bit/ and gtFine/"
_IMAGE, _LABEL = "_image.jpg", "_label.png"


class IDDLite(PairedFiles):
    """One split of IDD Lite, or of anything written in its layout with these seven classes.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine`` (or a folder around ``idd_lite``).
        split: a folder under ``leftImg8bit``: train, val or test. Images of test have no labels.
        labelled_every: keep the labels of every n-th drive, of the drives in the alphabetical order of
            their names, beginning with the first. The images of the other drives become unlabelled ones with
            `allow_unlabelled`, and are left out without it. Frames of one drive resemble each other, so a
            set with few labels is chosen by whole drives: 16 gives 88 of the 1403 training images.
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        DataError: the root, the split or files are missing.
        UserError: `labelled_every` is below 1.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        labelled_every: int = 1,
        **files: Unpack[FileOptions],
    ) -> None:
        if labelled_every < 1:
            raise UserError(
                f"`labelled_every` is {labelled_every}; expected 1 (all drives) or more"
            )
        root = require_folder(Path(root), _LAYOUT)
        if not (root / "leftImg8bit").is_dir() and (root / "idd_lite").is_dir():
            root = root / "idd_lite"
        images = require_folder(root / "leftImg8bit", _LAYOUT) / split
        if not images.is_dir():
            splits = [path.name for path in images.parent.iterdir() if path.is_dir()]
            raise unknown_name("IDD Lite split", split, splits, images.parent)
        drives = sorted(path for path in images.iterdir() if path.is_dir())
        labelled = set(drives[::labelled_every])
        if split == "test":
            files["allow_unlabelled"] = True
        pairs: list[tuple[Path, Path | None]] = []
        for drive in drives:
            labels = root / "gtFine" / split / drive.name
            for image in sorted(drive.glob(f"*{_IMAGE}")):
                label = labels / (image.name.removesuffix(_IMAGE) + _LABEL)
                if drive in labelled:
                    pairs.append((image, label))
                elif files.get("allow_unlabelled"):
                    pairs.append((image, None))
        if not pairs:
            raise DataError(f"{images} holds no */*{_IMAGE} files. Check `root`.")
        super().__init__(
            pairs,
            classes=CLASSES,
            palette=PALETTE,
            ignored=[255],
            root=root,
            **files,
        )
