"""The options that every reader of file pairs takes, and the choice of a set with few labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from densekd.errors import UserError


class FileOptions(TypedDict, total=False):
    """How a reader treats its files. A reader takes them as ``**files: Unpack[FileOptions]`` and passes them on.

    Attributes:
        channels: the channels of a decoded image: 1 (grey), 3 (RGB, the default) or 4 (RGBA).
        allow_unlabelled: images without a label file become unlabelled samples, whose target is None; by default
            they are errors.
        verify_files: whether the constructor makes sure that every file exists, as it does by default. `data check`
            switches this off, to list what is missing instead of stopping at it.
        labelled: only so many images keep their label: the first by name, of those that have one. The others become
            unlabelled samples with `allow_unlabelled` and are left out without it. None, the default, keeps all.
    """

    channels: int
    allow_unlabelled: bool
    verify_files: bool
    labelled: int | None


def few_labels(
    pairs: Sequence[tuple[Path, Path | None]], labelled: int, allow_unlabelled: bool
) -> dict[int, tuple[Path, Path | None]]:
    """The pairs of a set in which `labelled` images have a label, by their index in `pairs` (see `FileOptions`).

    Raises:
        UserError: there are not so many images with a label.
    """
    with_label = [index for index, (_, label) in enumerate(pairs) if label is not None]
    if not 1 <= labelled <= len(with_label):
        raise UserError(
            f"labelled is {labelled}; expected 1 to {len(with_label)}, the number of images with a label"
        )
    chosen = set(sorted(with_label, key=lambda index: pairs[index][0].as_posix())[:labelled])
    if not allow_unlabelled:
        return {index: pairs[index] for index in sorted(chosen)}
    return {
        index: (image, label if index in chosen else None)
        for index, (image, label) in enumerate(pairs)
    }
