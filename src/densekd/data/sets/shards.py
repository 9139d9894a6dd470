"""Images and what is known about them in tar files, laid out as webdataset has them, and read at random."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densekd.data.base import IGNORE_INDEX, Sample
from densekd.data.files import read_image, require_folder
from densekd.data.items import BoxFormat, Items
from densekd.data.sets._box_files import check_channels
from densekd.data.tar_index import (
    INDEX,
    TarMembers,
    find_shards,
    read_index,
    refuse_remote,
    samples_of,
)
from densekd.errors import DataError, UserError
from densekd.ops.names import first_few
from densekd.targets import BoxTarget

IMAGE = "jpg;jpeg;png;webp"
_TRUTH = ("mask", "boxes", "depth")


class Shards:
    """Samples in tar files: ``KEY.jpg`` beside ``KEY.seg.png``, as webdataset's tools write and read them.

    A file's key is its name up to the first dot, and its suffix what follows. Samples are read at random by their
    places in the tars (`densekd.data.tar_index`), so order and resume are those of every other data set. Of the
    shards of ``densekd data shard`` the index knows places, classes and suffixes; of others the headers are read once.

    `mask`, `boxes` and `depth` are suffixes, and one of them says what is known, and so the task; images alone are read
    with ``labelled=0, allow_unlabelled=True``. A suffix that ends with ``json`` holds an object, into whose
    parts the rest of the name leads (``json.boxes``); ``npy`` is an array of NumPy's.

    Args:
        root: the folder of the shards.
        split: stands for ``{split}`` in `shards`.
        shards: the files below `root`: ``train-*.tar``, ``train-{000000..000012}.tar``.
        image: suffixes of images, the first that a sample has.
        mask: of class maps: one-channel PNGs of class indices.
        boxes: of boxes (n, 4) in pixels, with `labels` (n,), class indices, and `crowd` (n,), true where ignored.
        depth: of depth maps, 0 where unknown, `unit` metres a step; with `intrinsics`, fx, fy, cx, cy in pixels.
        classes, palette, ignore_index, box_format, unit, channels: see `Items`.
        allow_unlabelled: samples without a label are unlabelled samples; by default they are errors.
        labelled: only so many images keep their label: the first by name, of those that have one. The others become
            unlabelled samples with `allow_unlabelled` and are left out without it. None keeps all.
        verify_files: without effect: the index or the headers are read in any case.

    Raises:
        DataError: shards are missing, damaged or hostile, or samples lack an image or a label.
        UserError: options do not fit each other, or `root` is an address.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        shards: str = "{split}-*.tar",
        image: str | None = None,
        mask: str | None = None,
        boxes: str | None = None,
        labels: str | None = None,
        depth: str | None = None,
        intrinsics: str | None = None,
        crowd: str | None = None,
        classes: Sequence[str] | None = None,
        palette: Sequence[tuple[int, int, int]] | None = None,
        ignore_index: int | None = None,
        box_format: BoxFormat = "xyxy",
        unit: float = 1.0,
        channels: int = 3,
        allow_unlabelled: bool = False,
        labelled: int | None = None,
        verify_files: bool = True,
    ) -> None:
        refuse_remote(root, "root")
        root = require_folder(Path(root), "a folder of tar files")
        check_channels(channels)
        index = read_index(root) or {}
        known = _known(index, root)
        options = {
            "mask": mask, "boxes": boxes, "labels": labels, "depth": depth, "intrinsics": intrinsics, "crowd": crowd,
        }  # fmt: skip
        if not any(options[name] for name in _TRUTH):
            options = {name: value or known.get(name) for name, value in options.items()}
            ignore_index = known.get("ignore_index") if ignore_index is None else ignore_index
        if options["boxes"] and options["labels"] is None:
            raise UserError("`labels` is missing; give the suffix of the classes of `boxes`")
        if classes is None and palette is None:
            palette = known.get("palette")
        self._images = (image or known.get("image") or IMAGE).lower().split(";")
        self._keys = {name: value for name, value in options.items() if value}
        self._truth = next((name for name in _TRUTH if name in self._keys), None)
        if self._truth is None and not (labelled == 0 and allow_unlabelled):
            raise UserError(
                "`mask`, `boxes` and `depth` are missing; give the suffix of the files that say what is known "
                "(mask: seg.png). Images alone are taken with `labelled` 0 and `allow_unlabelled`, as data.unlabelled "
                "takes them"
            )
        paths = find_shards(root, shards.replace("{split}", split))
        entries = index.get("by_url", {})
        found = [samples_of(p, entries.get(p.relative_to(root).as_posix())) for p in paths]
        suffixes = [_parts(key)[0] for key in self._keys.values()]
        self.members = TarMembers(paths, list(dict.fromkeys([*self._images, *suffixes])), found)
        if not len(self.members):
            raise DataError(
                f"{first_few(paths)}: no sample in {len(paths)} shards; expected files KEY.SUFFIX"
            )
        self._numbers, self._labelled = self._chosen(allow_unlabelled, labelled)
        self.channels = channels
        if self._truth is None:
            self._items = None
            self.classes: list[str] = []
            self.palette: list[tuple[int, int, int]] = []
            self.ignore_index = IGNORE_INDEX
            return
        given = ("labels", "intrinsics", "crowd")
        keys: dict[str, Any] = {name: name for name in (self._truth, *given) if name in self._keys}
        self._items = Items(
            _Rows(self),
            image="image",
            name="name",
            classes=classes or known.get("classes") or (),
            palette=palette,
            ignore_index=ignore_index,
            box_format=box_format,
            unit=unit,
            channels=channels,
            allow_unlabelled=allow_unlabelled,
            **keys,
        )
        self.task = self._items.task
        self.classes, self.palette = self._items.classes, self._items.palette
        self.ignore_index = self._items.ignore_index
        if self.task == "detection":
            self.category_ids = known.get("category_ids") or list(range(1, len(self.classes) + 1))

    def _chosen(
        self, allow_unlabelled: bool, labelled: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each sample its number among the members, and whether its label is read."""
        numbers = np.arange(len(self.members))
        self._demand(
            np.any([self.members.has(s) for s in self._images], axis=0),
            "image",
            ";".join(self._images),
        )
        if self._truth is None:
            return numbers, np.zeros(len(numbers), dtype=bool)
        suffix = _parts(self._keys[self._truth])[0]
        taken = self.members.has(suffix)
        if not allow_unlabelled:
            self._demand(taken, self._truth, suffix)
        if labelled is not None:
            with_label = np.flatnonzero(taken)
            least = 0 if allow_unlabelled else 1
            if not least <= labelled <= len(with_label):
                raise UserError(
                    f"`labelled` is {labelled}; expected {least} to {len(with_label)}, the number of images with a "
                    "label"
                )
            taken = np.zeros_like(taken)
            taken[sorted(with_label.tolist(), key=self.members.name)[:labelled]] = True
        kept = numbers if allow_unlabelled else numbers[taken]
        return kept, taken[kept]

    def _demand(self, there: np.ndarray, option: str, suffix: str) -> None:
        """DataError where samples lack a file."""
        bare = [self.members.name(i) for i in np.flatnonzero(~there).tolist()]
        unless = (
            "" if option == "image" else ", or set `allow_unlabelled` to use these images without"
        )
        if bare:
            raise DataError(
                f"{len(bare)} of {len(there)} samples have no {suffix}: {first_few(bare)}. Say in `{option}` how these "
                f"files end{unless}"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self._numbers)

    def name(self, index: int) -> str:
        return self.members.name(self._numbers[index])

    def paths(self, index: int) -> tuple[None, None]:
        """None twice: a sample is a part of a file; see `sources`."""
        return None, None

    def sources(self, index: int) -> list[Path]:
        """See `DenseSet`."""
        return [Path(self.members.shards[self.members.shard(self._numbers[index])])]

    def read(self, index: int) -> Sample:
        if self._items is None or not self._labelled[index]:
            name = self.name(index)
            return Sample(read_image(self._image(index), self.channels, name=name), None, name)
        sample = self._items.read(index)
        if isinstance(sample.target, BoxTarget):
            self._add_facts(sample.target, index)
        return sample

    def _image(self, index: int) -> bytes:
        for suffix in self._images:
            found = self.members.read(self._numbers[index], suffix)
            if found is not None:
                return found
        raise AssertionError("every sample has an image")

    def _add_facts(self, target: BoxTarget, index: int) -> None:
        """Areas of masks and the image's id, where `densekd data shard` wrote them beside the boxes."""
        key, path = _parts(self._keys["boxes"])
        if path != ["boxes"]:
            return
        beside = self._part(index, f"{key}.areas"), self._part(index, f"{key}.image_id")
        areas = np.asarray(beside[0] if beside[0] is not None else (), dtype=object)
        numbers = all(isinstance(a, (int, float)) and 0 <= a < float("inf") for a in areas.flat)
        if areas.shape == target.areas.shape and numbers:
            target.areas = areas.astype(np.float32)
        if isinstance(beside[1], int) and abs(beside[1]) < 2**63:
            target.image_id = beside[1]

    def _part(self, index: int, key: str) -> Any:
        """What a key leads to: bytes of a file, an array, or a part of a JSON object; None where there is none."""
        number = self._numbers[index]
        suffix, path = _parts(key)
        content = self.members.read(number, suffix)
        if content is None:
            return None
        where = f"{self.members.name(number)}.{suffix}"
        if suffix.split(".")[-1] == "npy":
            return _array(content, where)
        if suffix.split(".")[-1] != "json":
            return content
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no JSON: {error}") from None
        for part in path:
            if not isinstance(found, Mapping):
                raise DataError(
                    f"{where} holds a {type(found).__name__}; expected an object with {part!r}"
                )
            found = found.get(part)
        return found


class _Rows:
    """Samples as dicts, for `Items`."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> _Row:
        return _Row(self.shards, index)


class _Row(Mapping):
    """One sample; a part is read when it is asked for, so that a name costs nothing."""

    def __init__(self, shards: Shards, index: int) -> None:
        self._shards, self._index = shards, index
        self._names = ["name", "image", *shards._keys]

    def __getitem__(self, key: str) -> Any:
        if key == "name":
            return self._shards.name(self._index)
        if key == "image":
            return self._shards._image(self._index)
        if not self._shards._labelled[self._index]:
            return None
        return self._shards._part(self._index, self._shards._keys[key])

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _parts(key: str) -> tuple[str, list[str]]:
    """``json.boxes`` -> the suffix ``json`` and the way in its object; any other key is a suffix."""
    parts = key.split(".")
    end = parts.index("json") + 1 if "json" in parts else len(parts)
    return ".".join(parts[:end]).lower(), parts[end:]


def _array(content: bytes, where: str) -> np.ndarray:
    """An array of numbers; pickled objects, and headers that promise more than there is, are refused."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0
        shape, _, dtype = (header if version == (1, 0) else np.lib.format.read_array_header_2_0)(
            file
        )
        count = int(np.prod([float(side) for side in shape])) * dtype.itemsize
        if dtype.kind not in "biuf" or count > len(content):
            raise ValueError(f"shape {shape} of {dtype} in {len(content)} bytes")
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError) as error:
        raise DataError(f"{where} is no array of numbers of NumPy's: {error}") from None


def _known(index: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """What an index of `densekd data shard` says of the set: options by name, classes, palette."""
    known = index.get("densekd", {})
    texts = ("image", *_TRUTH, "labels", "intrinsics", "crowd")
    good = isinstance(known, dict) and all(isinstance(known.get(name, ""), str) for name in texts)
    if good:
        classes, palette = known.get("classes", []), known.get("palette", [])
        ids, ignored = known.get("category_ids", []), known.get("ignore_index", 0)
        good = (
            isinstance(classes, list)
            and all(isinstance(name, str) for name in classes)
            and isinstance(palette, list)
            and all(_whole(colour, 3) for colour in palette)
            and _whole(ids, len(ids) if isinstance(ids, list) else 0)
            and isinstance(ignored, int)
        )
    if not good:
        raise DataError(
            f"{root / INDEX} says of the set {str(known)[:200]}; expected suffixes, classes and colours. Write it "
            "again by `densekd data shard`, or remove it and give these as options"
        )
    return known


def _whole(values: Any, count: int) -> bool:
    """Whether it is a list of so many whole numbers."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int) for v in values)
    )
