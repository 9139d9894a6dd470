"""Your own depth: a folder of images, a folder of 16-bit depth maps with the same names, and the unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from densekd.data.files import IMAGE_ENDINGS, require_folder
from densekd.data.paired_files import FileOptions
from densekd.data.sets._depth_files import DepthFiles, camera_of
from densekd.data.sets.folder import by_key, layout, listed_keys
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few
from densekd.targets import Intrinsics

Cameras = Sequence[float] | Mapping[str, Sequence[float]] | str


class DepthFolder(DepthFiles):
    """Images and depth maps in one of the three layouts of `Folder`, with ``depth`` in place of ``masks``.

    An image and its depth have the same path below their folders but for the ending. Folders may have folders inside
    (Cityscapes' cities). The built-in scenes, written to disk, are read with ``images="leftImg8bit",
    image_ending="_leftImg8bit.png", depth_ending="_depth.png", intrinsics="camera", unit="m/256"``.

    Args:
        root: the folder.
        split: see `Folder`.
        unit: what the depth files' numbers are, see `DepthFiles`. Required: no file says it.
        intrinsics: fx, fy, cx, cy in pixels for all images; or a table from the beginning of a file's name to them
            (the longest that fits counts, and one must); or the name of a folder beside the images' of JSON
            files with these keys; or None where unknown.
        intrinsics_size: (height, width) of the images that the numbers are of; None means each image's own.
        images, depth: names of the two folders.
        image_ending, depth_ending: how file names end beyond what a pair shares; None means any image's suffix, and
            ``.png``.
        camera_ending: the same for the JSON files.
        files: the options of every reader of file pairs, see `FileOptions`.

    Raises:
        UserError: the unit is unknown; intrinsics have another form.
        DataError: the root, the split or files are missing; two images share a name; an image has no intrinsics.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        unit: str | float,
        intrinsics: Cameras | None = None,
        intrinsics_size: Sequence[int] | None = None,
        images: str = "images",
        depth: str = "depth",
        image_ending: str | None = None,
        depth_ending: str = ".png",
        camera_ending: str = "_camera.json",
        **files: Unpack[FileOptions],
    ) -> None:
        root = require_folder(Path(root), f"a folder with {images}/ and {depth}/")
        image_folder, depth_folder, listed = layout(root, split, images, depth)
        found = by_key(image_folder, image_ending, nested=True)
        if not found:
            wanted = image_ending or ", ".join(IMAGE_ENDINGS)
            raise DataError(f"{image_folder} holds no images ({wanted})")
        keys = sorted(found) if listed is None else listed_keys(listed, found)
        cameras: list[Intrinsics | Path | None] | None = None
        if isinstance(intrinsics, str):
            folder = layout(root, split, images, intrinsics)[1]
            cameras = [folder / f"{key}{camera_ending}" for key in keys]
            missing = [path for path in cameras if isinstance(path, Path) and not path.is_file()]
            if missing and files.get("verify_files", True):
                raise DataError(f"{len(missing)} camera files do not exist: {first_few(missing)}")
        elif intrinsics is not None:
            cameras = [_camera(intrinsics, found[key]) for key in keys]
        super().__init__(
            [(found[key], depth_folder / f"{key}{depth_ending}") for key in keys],
            unit=unit,
            intrinsics=cameras,
            intrinsics_size=intrinsics_size,
            root=root,
            **files,
        )


def _camera(given: Sequence[float] | Mapping[str, Sequence[float]], image: Path) -> Intrinsics:
    if not isinstance(given, Mapping):
        return camera_of(given, "intrinsics")
    fitting = [prefix for prefix in given if image.name.startswith(prefix)]
    if not fitting:
        raise UserError(
            f"`intrinsics` has nothing for {image.name}; its names begin with {', '.join(map(repr, given))}. "
            "Add one; the empty name '' fits all."
        )
    prefix = max(fitting, key=len)
    return camera_of(given[prefix], f"intrinsics of {prefix!r}")
