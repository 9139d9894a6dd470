"""`data shard`: a recipe's data as tar files that webdataset's tools and the reader `shards` read."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from densekd.build.data import build_reader
from densekd.config.schema import Config
from densekd.data.base import DenseSet, Sample
from densekd.data.files import read_image
from densekd.data.sets.shards import IMAGE
from densekd.data.tar_index import INDEX, split_name
from densekd.errors import DataError, UserError
from densekd.ops.files import check_new_or_empty, clear_partial, take_name, write_text, writing
from densekd.targets import BoxTarget, ClassMap, DepthTarget, kind_of_set

_AS_THEY_ARE = tuple(f".{suffix}" for suffix in IMAGE.split(";"))
# What the targets' files are called, as options of the reader `shards`.
_SUFFIXES = {
    "segmentation": {"mask": "seg.png"},
    "detection": {"boxes": "json.boxes", "labels": "json.labels", "crowd": "json.ignored"},
    "depth": {"depth": "depth.npy", "intrinsics": "json.intrinsics"},
}
_TASKS = {BoxTarget: "detection", DepthTarget: "depth", ClassMap: "segmentation"}
_BEYOND = 65535  # a 16-bit label that is not scored


def shard(config: Config, folder: Path, *, splits: list[str], images: int) -> dict[str, int]:
    """Write the splits of a recipe's data as shards, and an index beside them, with a progress bar on stderr.

    They stand in ``FOLDER.partial`` until they are complete. Equal data give equal bytes.

    Args:
        folder: must not exist, or be empty.
        images: of one shard.

    Returns:
        the number of samples of each split.

    Raises:
        UserError: the folder is in use, or a split's name is no file name.
        DataError: an image or label cannot be read; with `data.on_bad_file: skip` it is left out.
    """
    check_new_or_empty(folder)
    if images < 1:
        raise UserError(f"--shard-images is {images}; expected 1 or more")
    for split in splits:
        if not re.fullmatch(r"[\w.-]+", split) or split.startswith("."):
            raise UserError(
                f"the split {split!r} cannot begin the name of a file; expected letters and digits"
            )
    parted = config.data.val_fraction is not None
    if len(set(splits)) < len(splits) or (parted and len(splits) > 1):
        raise UserError(
            "data.val_fraction: training and validation images are parts of one split; write it whole by --split, and "
            "set data.val_fraction where the shards are read"
        )
    data = replace(config.data, val_fraction=None) if parted else config.data
    partial = clear_partial(folder, "shards", lambda path: path.suffix in (".tar", ".json"))
    readers = {
        split: build_reader(data, split, training=split == data.train_split) for split in splits
    }
    known = _said_once(readers)
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    entries: list[dict[str, Any]] = []
    with writing(partial), Progress(*columns, console=Console(stderr=True)) as progress:
        partial.mkdir(parents=True)
        counts = {}
        for split, reader in readers.items():
            bar = progress.add_task(split, total=len(reader))
            samples = _samples(reader, known["ignore_index"], config.data.on_bad_file == "skip")
            own = list(_write(partial, split, samples, images, lambda b=bar: progress.advance(b)))
            counts[split] = sum(entry["nsamples"] for entry in own)
            if not counts[split]:
                raise DataError(f"no sample of {split} can be read; nothing was written")
            entries += own
        whole = hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()
        content = {
            "wids_version": 1, "name": config.data.dataset, "densekd": known, "counts": counts, "digest": whole,
            "shardlist": entries,
        }  # fmt: skip
        write_text(partial / INDEX, json.dumps(content))
        take_name(partial, folder)
    return counts


def _said_once(readers: dict[str, DenseSet]) -> dict[str, Any]:
    """What the reader `shards` needs to know of a set; the splits must agree."""
    known: dict[str, Any] = {}
    for split, reader in readers.items():
        task = _task(reader)
        ignored = reader.ignore_index if reader.ignore_index >= 0 else _BEYOND
        own: dict[str, Any] = {
            "task": task, "classes": list(reader.classes), "palette": [list(map(int, c)) for c in reader.palette],
            "ignore_index": ignored, "image": IMAGE, **_SUFFIXES[task],
        }  # fmt: skip
        if task == "detection":
            own["category_ids"] = [int(i) for i in getattr(reader, "category_ids", None) or ()]
        if known and own != known:
            raise UserError(
                f"data: classes or task of {split} differ from those of the split before; write each apart"
            )
        known = own
    return known


def _task(reader: DenseSet) -> str:
    kind = kind_of_set(reader)
    for known, task in _TASKS.items():
        if issubclass(kind, known):
            return task
    raise UserError(
        f"data.dataset gives {kind.name}, which have no form of files here; expected class maps, boxes or depth"
    )


def _samples(
    reader: Any, ignored: int, skip_bad: bool
) -> Iterator[tuple[str, dict[str, bytes]] | None]:
    """Key and files of each sample; None where one is left out."""
    width = len(str(len(reader)))
    for index in range(len(reader)):
        try:
            sample = reader.read(index)
        except DataError:
            if not skip_bad:
                raise
            yield None
            continue
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(sample.name).stem)
        files = {**_image(reader, index, sample), **_target(reader, sample.target, ignored)}
        yield f"{index:0{width}d}_{stem}", files


def _image(reader: Any, index: int, sample: Sample) -> dict[str, bytes]:
    """The image's own bytes where they decode to the sample's pixels, else a PNG of these."""
    path = reader.paths(index)[0] if hasattr(reader, "paths") else None
    if path is not None and path.suffix.lower() in _AS_THEY_ARE:
        content = path.read_bytes()
        if np.array_equal(read_image(content, sample.image.shape[2], name=str(path)), sample.image):
            return {path.suffix.lower().removeprefix("."): content}
    pixels = sample.image[..., 0] if sample.image.shape[2] == 1 else sample.image
    return {"png": _png(pixels)}


def _target(reader: Any, target: Any, ignored: int) -> dict[str, bytes]:
    if target is None:
        return {}
    if isinstance(target, BoxTarget):
        facts = {
            name: getattr(target, name).tolist() for name in ("boxes", "labels", "ignored", "areas")
        }
        return {"json": json.dumps({**facts, "image_id": int(target.image_id)}).encode()}
    if isinstance(target, DepthTarget):
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(target.depth, dtype=np.float32))
        camera = None if target.intrinsics is None else [float(v) for v in target.intrinsics]
        return {"depth.npy": file.getvalue(), "json": json.dumps({"intrinsics": camera}).encode()}
    labels = np.where(target == reader.ignore_index, ignored, target)
    return {"seg.png": _png(labels.astype(np.uint8 if ignored < 256 else np.uint16))}


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()


def _write(
    folder: Path, split: str, samples: Iterator[Any], images: int, advance: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Write shards of so many samples, and give an entry of the index for each."""

    def readable() -> Iterator[tuple[str, dict[str, bytes]]]:
        for sample in samples:
            advance()
            if sample is not None:
                yield sample

    left = readable()
    for number in count():
        first = next(left, None)
        if first is None:
            return
        path = folder / f"{split}-{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            rows = [_add(tar, *sample) for sample in chain([first], islice(left, images - 1))]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield {
            "url": path.name, "nsamples": len(rows), "filesize": path.stat().st_size, "sha256": digest,
            "samples": rows,
        }  # fmt: skip


def _add(tar: tarfile.TarFile, key: str, files: dict[str, bytes]) -> list[Any]:
    """Add a sample's files; its key, and offset and size of each by its suffix."""
    places = {}
    for suffix, content in files.items():
        member = tarfile.TarInfo(f"{key}.{suffix}")
        assert split_name(member.name) == (key, suffix)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
        # The content ends with the last block that was written.
        blocks = -(-len(content) // tarfile.BLOCKSIZE)
        places[suffix] = [tar.offset - blocks * tarfile.BLOCKSIZE, len(content)]
    return [key, places]
