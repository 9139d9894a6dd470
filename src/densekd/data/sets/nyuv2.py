"""NYU Depth v2, the 1449 labelled frames: indoor depth by Kinect, 795 to train and 654 to test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample
from densekd.data.files import read_list, require_folder, unknown_name
from densekd.data.image_files import check_pixels, require_plain_file
from densekd.data.paired_files import FileOptions
from densekd.data.sets._matfile import read_mat_arrays
from densekd.data.sets.depth_folder import DepthFolder
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few
from densekd.targets import DepthTarget, Intrinsics

MAT = "nyu_depth_v2_labeled.mat"
SIZE = (480, 640)
# camera_params.m of the authors' toolbox: the colour camera, onto which the labelled depth is projected. (Its depth
# camera has fx 582.62, fy 582.69, cx 313.04, cy 238.44, which do not belong to these frames.)
INTRINSICS: Intrinsics = (518.857901, 519.469611, 325.582449, 253.736166)
_SPLITS = {"train": "trainNdxs", "test": "testNdxs"}


class NYUv2:
    """One split of the labelled frames, from the authors' file or from folders.

    * ``root/nyu_depth_v2_labeled.mat`` (HDF5; needs h5py: ``pip install 'densekd[depth]'``), with the official
      split in ``root/splits.mat``, or in ``root/{split}.txt`` with one frame number a line, from 1 as there. The
      split ``all`` needs neither. The frames' white border is left to the metric's crop.
    * where that file is missing: the layouts of `DepthFolder`, with 16-bit depth in ``unit``.

    Args:
        root: the folder.
        split: train, test, all, or the name of a list or folder.
        raw: the sensor's own depth, with holes, in place of the filled-in one that the field trains and scores
            on. Only for the .mat file.
        unit: the unit of depth files in folders.
        files: the options of every reader of file pairs, see `FileOptions`. The .mat file
            has a label for each frame and takes no others than `allow_unlabelled` and `verify_files`, without effect,
            `labelled: 0` with the former, and `allow_outside`: frames may lie in other files that this one names.

    Raises:
        DataError: files are missing or damaged; a frame number is not there.
        UserError: h5py is not installed; an option of folders is given for the .mat file, or the other way round.
    """

    task = "depth"
    ignore_index = IGNORE_INDEX

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        raw: bool = False,
        unit: str | float = "mm",
        **files: Unpack[FileOptions],
    ) -> None:
        root = require_folder(Path(root), f"a folder with {MAT}, or with images/ and depth/")
        self.classes: list[str] = []
        self.palette: list[tuple[int, int, int]] = []
        self._mat = str(root / MAT)
        self._depth = "rawDepths" if raw else "depths"
        self._files: DepthFolder | None = None
        if not Path(self._mat).is_file():
            self._files = _folders(root, split, raw, unit, files)
            self.channels = self._files.channels
            return
        self._labelled = files.get("labelled") != 0
        self._allow_outside = files.get("allow_outside", False)
        unused = sorted(set(files) - {"allow_outside", "allow_unlabelled", "verify_files"})
        if not self._labelled and files.get("allow_unlabelled"):
            unused.remove("labelled")
        if unused:
            raise UserError(
                f"`{unused[0]}` is no option of {MAT}, which is in {root}; leave it out"
            )
        self.channels = 3
        self._frames = _frame_numbers(root, split, self._check_file())

    def __len__(self) -> int:
        return len(self._frames) if self._files is None else len(self._files)

    def name(self, index: int) -> str:
        if self._files is not None:
            return self._files.name(index)
        return f"frame {self._frames[index]:04d}"

    def paths(self, index: int) -> tuple[Path | None, Path | None]:
        """None twice for frames of the .mat file."""
        return self._files.paths(index) if self._files is not None else (None, None)

    def sources(self, index: int) -> list[Path]:
        """See `DenseSet`."""
        return self._files.sources(index) if self._files is not None else [Path(self._mat)]

    def read(self, index: int) -> Sample:
        if self._files is not None:
            return self._files.read(index)
        frame = self._frames[index] - 1
        # Opened anew each time (a fraction of a millisecond): HDF5 must not carry an open file over a fork.
        with self._opened(self.name(index)) as file:
            # (3, W, H) and (W, H), as MATLAB's column order comes out.
            image = np.ascontiguousarray(file["images"][frame].transpose(2, 1, 0))
            depth = np.ascontiguousarray(file[self._depth][frame].T, dtype=np.float32)
        target = DepthTarget(depth, INTRINSICS) if self._labelled else None
        return Sample(image, target, self.name(index))

    def _check_file(self) -> int:
        """The number of frames."""
        with self._opened("it") as file:
            for name in ("images", self._depth):
                if name not in file:
                    raise DataError(f"{self._mat} lacks {name!r}; is it {MAT}, whole?")
                if not self._allow_outside and _elsewhere(file, name):
                    raise DataError(
                        f"{self._mat} keeps {name!r} in another file; expected all of it in this one. Take the "
                        "authors' own file, or set `allow_outside` if you trust this one."
                    )
            images, depths = file["images"].shape, file[self._depth].shape
        if len(images) != 4 or images[1] != 3 or images[:1] + images[2:] != depths:
            raise DataError(
                f"{self._mat} has images {images} and depth {depths}; expected (N, 3, W, H) and (N, W, H)"
            )
        check_pixels(images[2], images[3], f"a frame of {self._mat}")
        return int(images[0])

    @contextmanager
    def _opened(self, what: str) -> Iterator[Any]:
        """The file; what h5py says of a damaged one within becomes a DataError that names `what`."""
        require_plain_file(self._mat, MAT)
        try:
            import h5py
        except ImportError:
            raise UserError(
                f"{MAT} is read through h5py, which is not installed: pip install 'densekd[depth]'"
            ) from None
        try:
            file = h5py.File(self._mat, "r")
        except OSError as error:
            raise DataError(f"{self._mat} cannot be opened as HDF5: {error}") from None
        with file:
            try:
                yield file
            except UserError:
                raise
            except (
                OSError,
                LookupError,
                RuntimeError,
                ValueError,
                TypeError,
                AttributeError,
            ) as error:
                raise DataError(f"{self._mat}: {what} cannot be read: {error}") from None


def _elsewhere(file: Any, name: str) -> bool:
    """Whether what an HDF5 file calls `name` lies, by a link or in part, in other files."""
    import h5py

    if isinstance(file.get(name, getlink=True), h5py.ExternalLink):
        return True
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.file.filename != file.filename:
        return True
    return bool(found.external) or found.is_virtual


def _folders(
    root: Path, split: str, raw: bool, unit: str | float, files: FileOptions
) -> DepthFolder:
    if raw:
        raise UserError(f"`raw` chooses between the depths of {MAT}, which is not in {root}")
    try:
        return DepthFolder(
            root,
            split,
            unit=unit,
            intrinsics=INTRINSICS,
            intrinsics_size=SIZE,
            **files,
        )
    except DataError as error:
        raise DataError(f"{root} has no {MAT}, so folders are looked for: {error}") from None


def _frame_numbers(root: Path, split: str, count: int) -> list[int]:
    """The numbers of a split's frames, counted from 1 as in the toolbox."""
    listed, mat = root / f"{split}.txt", root / "splits.mat"
    if split == "all":
        return list(range(1, count + 1))
    if mat.is_file() and split in _SPLITS:
        arrays, source = read_mat_arrays(mat), mat
        if _SPLITS[split] not in arrays:
            raise DataError(f"{mat} lacks {_SPLITS[split]!r}; is it the toolbox's splits.mat?")
        words = [str(int(number)) for number in arrays[_SPLITS[split]].ravel()]
    elif listed.is_file():
        words, source = [row[0] for row in read_list(listed)], listed
    elif split in _SPLITS:
        raise DataError(f"{root} has neither splits.mat nor {listed.name}: the frames of {split}")
    else:
        raise unknown_name(
            "split", split, [*_SPLITS, "all", *(p.stem for p in root.glob("*.txt"))], root
        )
    wrong = [word for word in words if not word.isdecimal() or not 1 <= int(word) <= count]
    if wrong:
        raise DataError(f"{source} names frames outside 1-{count}: {first_few(wrong)}")
    return [int(word) for word in words]
