"""A part of a data set: training and validation images out of one list, whole groups on one side."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from densekd.data.base import DenseSet, Sample, sources_of
from densekd.errors import UserError
from densekd.ops.names import first_few
from densekd.targets import kind_of_set

FOLDER = "folder"


class Part:
    """Some of the samples of a data set.

    Args:
        reader: the whole set.
        indices: of the samples, in the order wanted.
        unlabelled: those of `indices` whose label is withheld.

    Raises:
        UserError: there is no sample.
    """

    def __init__(
        self, reader: DenseSet, indices: Sequence[int], unlabelled: Sequence[int] = ()
    ) -> None:
        if not len(indices):
            raise UserError("a part of a data set needs a sample; `indices` is empty")
        self.reader = reader
        self.indices = list(indices)
        self._unlabelled = frozenset(unlabelled)
        self.target = kind_of_set(reader)
        self.classes = reader.classes
        self.palette = reader.palette
        self.ignore_index = reader.ignore_index
        self.channels = reader.channels
        for name in ("task", "category_ids", "num_classes"):
            if hasattr(reader, name):
                setattr(self, name, getattr(reader, name))

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.reader.name(self.indices[index])

    def paths(self, index: int) -> tuple[Path | None, Path | None]:
        place = self.indices[index]
        image, label = self.reader.paths(place) if hasattr(self.reader, "paths") else (None, None)
        return image, None if place in self._unlabelled else label

    def sources(self, index: int) -> list[Path]:
        """See `DenseSet`.

        Raises:
            UserError: the data set names none.
        """
        files = sources_of(self.reader, self.indices[index])
        if not files and not hasattr(self.reader, "sources"):
            raise UserError(
                f"{type(self.reader).__name__} does not say which files its samples are made of, so that a change "
                "would not be noticed. Give it a method sources(index) that lists them, or keep samples in memory alone"
            )
        return files

    def read(self, index: int) -> Sample:
        sample = self.reader.read(self.indices[index])
        return replace(sample, target=None) if self.indices[index] in self._unlabelled else sample


def held_out(
    reader: DenseSet, fraction: float, groups: str | None = None, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Indices to learn from, and indices to score on; no group has images in both.

    A group's side depends on its name and the seed alone, so that images which are added later move no other: a digest
    of both, as a number in [0, 1), is below `fraction`. The share of validation images is therefore only about that,
    the nearer the more groups there are.

    Args:
        fraction: the share of the groups that is held out for validation, between 0 and 1.
        groups: what belongs together: None: each image is a group; ``"folder"``: the images of one folder; else a
            regular expression that is searched in the image's name: what its first parentheses match is
            the group, or all that it matches where it has none.
        seed: another one gives another choice.

    Raises:
        UserError: the expression is none or does not fit an image's name; one of the sides is empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"`fraction` is {fraction}; expected a number between 0 and 1")
    of_each = _groups([reader.name(index) for index in range(len(reader))], groups)
    out = {group for group in set(of_each) if _place(group, seed) < fraction}
    train = [index for index, group in enumerate(of_each) if group not in out]
    val = [index for index, group in enumerate(of_each) if group in out]
    if not train or not val:
        count = len(set(of_each))
        raise UserError(
            f"`fraction` {fraction} of {count} groups ({first_few(sorted(set(of_each)), 3)}) leaves no image to "
            f"{'learn from' if not train else 'score on'}; expected both. Take another `fraction`, other "
            "`groups`, or another `seed`."
        )
    return train, val


def few_labelled(part: Part, labelled: int, allow_unlabelled: bool) -> Part:
    """The part with the labels of its first so many images by name; see `FileOptions.labelled`.

    Raises:
        UserError: there are not so many images with a label.
    """
    with_label = [place for i, place in enumerate(part.indices) if part.paths(i)[1] is not None]
    least = 0 if allow_unlabelled else 1
    if not least <= labelled <= len(with_label):
        raise UserError(
            f"`labelled` is {labelled}; expected {least} to {len(with_label)}, the number of images with a label in "
            "this part"
        )
    kept = set(sorted(with_label, key=part.reader.name)[:labelled])
    if not allow_unlabelled:
        return Part(part.reader, [place for place in part.indices if place in kept])
    return Part(part.reader, part.indices, [place for place in part.indices if place not in kept])


def _groups(names: list[str], groups: str | None) -> list[str]:
    if groups is None:
        return names
    if groups == FOLDER:
        return [PurePosixPath(name).parent.as_posix() for name in names]
    try:
        pattern = re.compile(groups)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"`groups` is {groups!r}, which is no regular expression ({error}); expected one, or 'folder'"
        ) from None
    found: list[Any] = [pattern.search(name) for name in names]
    strange = [name for name, match in zip(names, found, strict=True) if match is None]
    if strange:
        raise UserError(
            f"`groups` {groups!r} does not fit {len(strange)} of {len(names)} names: {first_few(strange, 3)}; "
            "every image needs a group"
        )
    return [(match[1] or "") if pattern.groups else match[0] for match in found]


def _place(group: str, seed: int) -> float:
    """In [0, 1), the same everywhere."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
