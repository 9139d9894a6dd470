"""From single samples to a batch: padded to one size, images as planes, targets as their kind has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from densekd.data.augment import pad
from densekd.targets import kind_of
from densekd.types import Batch, SampleKey


class Item(NamedTuple):
    """One sample on its way into a batch."""

    image: np.ndarray  # (H, W, C) uint8
    target: Any
    inside: np.ndarray  # (H, W) bool
    labelled: bool
    name: str
    key: SampleKey | None = None  # see `Batch.keys`


class Stacked(NamedTuple):
    """A batch on its way out of a worker: torch pins the memory of tensors in tuples, but not in our `Batch`."""

    images: torch.Tensor
    targets: Any  # what the kind's `stack` gave
    labelled: torch.Tensor
    inside: torch.Tensor
    names: list[str]
    keys: list[SampleKey | None]
    kind: Any  # of all targets; None where they are of several kinds or of none, and stay a list


def collate(
    items: Sequence[Item], *, fill: int | Sequence[int] = 0, ignore_index: int = 255
) -> Batch:
    """Items -> a batch with uint8 images.

    Targets become what their kind puts into a batch: (N, H, W) class maps of the set's own integers (`Batch.to` makes
    them int64), a list of `Boxes`, or `DepthMaps`; a list of anything else stays one.
    Images of different size are padded at the bottom and right to the largest: `fill`, what the kind pads targets with
    (ignore_index, unknown depth), and False in `inside`.
    """
    return finish(stack(items, fill, ignore_index))


def stack(items: Sequence[Item], fill: int | Sequence[int], ignore_index: int) -> Stacked:
    """The part of `collate` that is done in a worker."""
    size = (max(item.image.shape[0] for item in items), max(item.image.shape[1] for item in items))
    if any(item.image.shape[:2] != size for item in items):
        items = [
            Item(
                *pad(item.image, item.target, size, fill, ignore_index, item.inside),
                item.labelled,
                item.name,
                item.key,
            )
            for item in items
        ]
    images = np.empty((len(items), items[0].image.shape[2], *size), dtype=np.uint8)
    for planes, item in zip(images, items, strict=True):
        _to_planes(item.image, planes)
    targets: Any = [item.target for item in items]
    kinds = {kind_of(target) for target in targets}
    kind = kinds.pop() if len(kinds) == 1 else None
    if hasattr(kind, "stack"):
        targets = kind.stack(targets)
    else:
        kind = None
    return Stacked(
        torch.from_numpy(images),
        targets,
        torch.tensor([item.labelled for item in items]),
        torch.from_numpy(np.stack([item.inside for item in items])),
        [item.name for item in items],
        [item.key for item in items],
        kind,
    )


def finish(stacked: Stacked) -> Batch:
    """The part of `collate` that is done in the main process."""
    targets, inside, kind = stacked.targets, stacked.inside, stacked.kind
    return Batch(
        stacked.images,
        targets if kind is None else kind.to_batch(targets, inside),
        stacked.labelled,
        inside,
        stacked.names,
        stacked.keys,
    )


def _to_planes(image: np.ndarray, planes: np.ndarray) -> None:
    """(H, W, C) uint8 into (C, H, W) of contiguous planes."""
    if image.shape[2] != len(planes):
        raise ValueError(f"images of {len(planes)} and {image.shape[2]} channels in one batch")
    # A quarter of the time of NumPy's copy.
    cv2.split(image, list(planes))
