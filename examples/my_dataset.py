"""A data set of your own: pairs of files in a layout that no reader of densekd knows."""

from pathlib import Path

from densekd.data import PairedFiles
from densekd.errors import DataError


class SideBySide(PairedFiles):
    """``root/{split}/NAME.png`` beside ``root/{split}/NAME_mask.png``: 10 ground, 20 building, 30 sky, 0 unknown."""

    def __init__(
        self,
        root: str,
        split: str = "train",
        *,
        allow_unlabelled: bool = False,
        verify_files: bool = True,
    ) -> None:
        folder = Path(root) / split
        images = sorted(p for p in folder.glob("*.png") if not p.stem.endswith("_mask"))
        if not images:
            raise DataError(f"{folder} holds no NAME.png; check `root` and the split")
        super().__init__(
            [(image, image.with_name(f"{image.stem}_mask.png")) for image in images],
            classes=["ground", "building", "sky"],
            palette=[(128, 64, 128), (70, 70, 70), (70, 130, 180)],
            table={
                10: 0,
                20: 1,
                30: 2,
            },  # number in the file -> class index; other numbers are errors
            ignored=[0],
            root=Path(root),
            allow_unlabelled=allow_unlabelled,
            verify_files=verify_files,
        )
