"""KITTI depth: street images with sparse LiDAR depth, by Eigen's lists or the official folders."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Unpack

from densekd.data.files import inside, read_list, require_folder, unknown_name
from densekd.data.paired_files import FileOptions
from densekd.data.sets._depth_files import DepthFiles, camera_of
from densekd.errors import DataError
from densekd.targets import Intrinsics

SELECTION = "val_selection"
_SELECTION_FOLDERS = ("val_selection_cropped", "depth_selection/val_selection_cropped")
_TRUTH = "proj_depth/groundtruth"


class Kitti(DepthFiles):
    """One split of KITTI's depth: 16-bit PNG, 1/256 m a step, 0 where the scanner saw nothing.

    Raw images lie in ``raw/`` or root (``2011_09_26/2011_09_26_drive_0001_sync/image_02/data/*.png``, or .jpg), depth
    in ``depth/``, ``data_depth_annotated/`` or root (``train/2011_..._sync/proj_depth/groundtruth/image_02/*.png``).
    Three kinds of split:

    * a list, ``root/{split}.txt`` or the option `list_file`, as those of Eigen's split are passed around: a line has
      image and depth path (and a focal length, which is not used). The depth's is relative to the depth folder
      or its train/ or val/. Lines whose depth is ``None`` are left out unless unlabelled images are allowed.
    * ``train`` or ``val`` without a list: all frames of the official folders.
    * ``val_selection``: the 1000 cropped frames of the official validation.

    Intrinsics come from ``calib_cam_to_cam.txt`` in the date's folder (``P_rect_02`` and ``_03``), of val_selection
    from its own files; without them they are unknown. The crop of Eigen or Garg is the metric's business.

    Args:
        root: the folder.
        split: see above.
        list_file: relative to root.
        images, depth: the folders of raw images and of depth, relative to root, where they have other names.
        cameras: which of the two colour cameras to read, in the official folders.
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        DataError: the root, the split or files are missing; a list has another form.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        list_file: str | None = None,
        images: str | None = None,
        depth: str | None = None,
        cameras: tuple[int, ...] = (2, 3),
        **files: Unpack[FileOptions],
    ) -> None:
        root = require_folder(Path(root), "KITTI's raw images and annotated depth")
        listed = root / (list_file or f"{split}.txt")
        raw = _one_of(root, images, ["raw"])
        truth = _one_of(root, depth, ["depth", "data_depth_annotated"])
        calibration = cache(_date_camera)  # one file a date, asked for by each of its images
        if list_file is not None or listed.is_file():
            pairs = _listed(
                listed,
                raw,
                truth,
                files.get("allow_unlabelled", False),
                files.get("allow_outside", False),
            )
            intrinsics = [_calibrated(image, calibration) for image, _ in pairs]
        elif split == SELECTION:
            pairs, intrinsics = _selection(root)
        else:
            pairs = _official(root, split, raw, truth, cameras)
            intrinsics = [_calibrated(image, calibration) for image, _ in pairs]
        super().__init__(
            pairs,
            unit="m/256",
            intrinsics=intrinsics,
            root=root,
            **files,
        )


Pairs = list[tuple[Path, Path | None]]


def _one_of(root: Path, given: str | None, names: list[str]) -> Path:
    if given is not None:
        return require_folder(root / given, "a folder of KITTI")
    return next((root / name for name in names if (root / name).is_dir()), root)


def _listed(
    path: Path, raw: Path, truth: Path, allow_unlabelled: bool, allow_outside: bool
) -> Pairs:
    pairs: Pairs = []
    for words in read_list(path):
        if not 2 <= len(words) <= 3:
            raise DataError(
                f"{path} has a line of {len(words)} words; expected image, depth and, if wanted, a focal length"
            )
        image = _image(inside(raw, words[0].lstrip("/"), path, allow_outside))
        depth = words[1].lstrip("/")
        if depth != "None":
            inside(truth, depth, path, allow_outside)
            pairs.append((image, _found([truth, truth / "train", truth / "val"], depth)))
        elif allow_unlabelled:
            pairs.append((image, None))
    return pairs


def _found(folders: list[Path], inner: str) -> Path:
    return next((f / inner for f in folders if (f / inner).is_file()), folders[0] / inner)


def _image(path: Path) -> Path:
    """The same as .jpg where the set was recompressed, as it often is (175 GB)."""
    jpeg = path.with_suffix(".jpg")
    return jpeg if not path.is_file() and jpeg.is_file() else path


def _official(root: Path, split: str, raw: Path, truth: Path, cameras: tuple[int, ...]) -> Pairs:
    if not (truth / split).is_dir():
        known = [p.stem for p in root.glob("*.txt")] + [SELECTION]
        known += [p.name for p in truth.iterdir() if any(p.glob("*_sync"))]
        raise unknown_name("split", split, known, root)
    pairs: Pairs = []
    for drive in sorted((truth / split).glob("*_sync")):
        date = drive.name[:10]
        for camera in cameras:
            inner = f"image_{camera:02d}"
            for depth in sorted((drive / _TRUTH / inner).glob("*.png")):
                image = raw / date / drive.name / inner / "data" / depth.name
                pairs.append((_image(image), depth))
    return pairs


def _selection(root: Path) -> tuple[Pairs, list[Intrinsics | None]]:
    folder = next((root / f for f in _SELECTION_FOLDERS if (root / f).is_dir()), None)
    if folder is None:
        raise DataError(f"{root} has no {_SELECTION_FOLDERS[0]}, the official validation's frames")
    pairs: Pairs = []
    intrinsics: list[Intrinsics | None] = []
    for image in sorted((folder / "image").glob("*.png")):
        name = image.name.replace("_sync_image_", "_sync_groundtruth_depth_")
        pairs.append((image, folder / "groundtruth_depth" / name))
        camera = folder / "intrinsics" / f"{image.stem}.txt"
        # Nine numbers: the camera's matrix, row by row.
        values = read_list(camera)[0] if camera.is_file() else None
        intrinsics.append(_camera(values, (0, 4, 2, 5), camera) if values else None)
    return pairs, intrinsics


def _calibrated(
    image: Path, calibration: Callable[[Path, str], Intrinsics | None]
) -> Intrinsics | None:
    """The intrinsics of a raw image, ``DATE/DRIVE/image_02/data/NAME``, by its date's calibration."""
    if len(image.parents) < 4:
        return None
    camera, date = image.parents[1].name, image.parents[3]
    return calibration(date / "calib_cam_to_cam.txt", camera.removeprefix("image_"))


def _date_camera(path: Path, camera: str) -> Intrinsics | None:
    if not path.is_file():
        return None
    for words in read_list(path):
        if words[0] == f"P_rect_{camera}:":  # 3 x 4, row by row
            return _camera(words[1:], (0, 5, 2, 6), path)
    raise DataError(f"{path} has no P_rect_{camera}")


def _camera(values: list[str], places: tuple[int, ...], path: Path) -> Intrinsics:
    if len(values) <= max(places):
        raise DataError(f"{path} has {len(values)} numbers; expected a camera's matrix")
    return camera_of([values[place] for place in places], path)
