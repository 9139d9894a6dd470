"""What the teacher gives for each augmented sample, stored: asked once, compared with by many students and epochs.

Image and target of a sample are a function of its key (`Batch.keys`), and a teacher in eval mode sees each image alone:
so is everything that the terms take of it. Stored is what the terms use: each map at the size at which it is compared,
a loss's own reduction where it has one (`Wants.reduce`; pair-wise: its nodes), in fixed places of one file a map.

A value that was computed is used as it was stored, so it makes no difference whether a sample's record was there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densekd.distill.maps import TeacherMaps
from densekd.distill.source import LiveTeacher, SeveralTeachers
from densekd.distill.stored.plan import Plan, digest_of
from densekd.distill.stored.records import RecordFile
from densekd.errors import UserError
from densekd.ops.files import write_text
from densekd.ops.names import bytes_text
from densekd.types import Batch, SampleKey

FORMAT = 1  # of files and their keys; a new one finds none of the old records
# What two computations of one map may differ by, as a share of its largest value: the same arithmetic in another order,
# and arithmetic in half precision or on a GPU.
SAME, OTHER = 1e-3, 5e-2


class TeacherCache:
    """The teacher's side of the terms, from files; what is missing there is computed and stored.

    On the CPU the teacher sees images one at a time, so that a record is bit for bit the same in whatever batch its
    sample came; on a GPU the missing images of a batch go together.

    Args:
        source: the live teacher (or several), asked for what is missing.
        plan: from `make_plan` with the same source.
        folder: where all stores lie; this one takes a folder below it that is named by `identity`.
        identity: all that the maps depend on: teacher, data, augmentation, seed. Plain values, as in JSON.
        images: the size of the set, or of each where there are several (`SampleKey.source`).
        epochs: after how many epochs the augmentations repeat.
        disk_gb: the largest size of the files, in 10⁹ bytes.

    Raises:
        UserError: the files would be larger than `disk_gb`, or than what is free on the disk. Nothing is written then.
    """

    def __init__(
        self,
        source: LiveTeacher | SeveralTeachers,
        plan: Plan,
        *,
        folder: Path,
        identity: Mapping[str, Any],
        images: int | Sequence[int],
        epochs: int,
        disk_gb: float = 20.0,
    ) -> None:
        self.source = source
        self.plan = plan
        self.sizes = [images] if isinstance(images, int) else list(images)
        self.images = sum(self.sizes)
        self.epochs = epochs
        self.records = self.images * epochs
        about = {
            "format": FORMAT,
            "images": images if isinstance(images, int) else self.sizes,
            "epochs": epochs,
            **identity,
        }
        text = json.dumps(about, sort_keys=True, indent=1)
        self.folder = folder / digest_of(text)
        self._refuse(disk_gb)
        self.files = [
            RecordFile(self.folder / f"{kept.name}.maps", self.records, kept.storage.nbytes)
            for kept in plan.kept
        ]
        if not (self.folder / "about.json").exists():
            write_text(self.folder / "about.json", text)

    @property
    def nbytes(self) -> int:
        """The size of the full files."""
        return self.records * self.plan.nbytes

    @property
    def filled(self) -> float:
        """Share of the records that are there, in [0, 1]."""
        return min((file.filled() for file in self.files), default=0) / self.records

    def __str__(self) -> str:
        return (
            f"teacher cache: {self._estimate()} at {self.folder}; {100 * self.filled:.0f} % filled"
        )

    def _estimate(self) -> str:
        return (
            f"{self.images} images × {self.records // self.images} epochs = {self.records} records × "
            f"{bytes_text(self.plan.nbytes)} ({self.plan}) = {bytes_text(self.nbytes)}"
        )

    def _refuse(self, disk_gb: float) -> None:
        remedy = "take fewer `epochs`, a smaller `storage` (int8, top_k), or a larger granularity of the pair-wise term"
        if self.nbytes > disk_gb * 1e9:
            raise UserError(
                f"{self._estimate()}, more than `disk_gb` {disk_gb:g}: {remedy}; or raise `disk_gb`"
            )
        existing = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        there = sum(
            512 * path.stat().st_blocks
            for kept in self.plan.kept
            if (path := self.folder / f"{kept.name}.maps").exists()
        )
        free = shutil.disk_usage(existing).free
        if self.nbytes - there > free:
            raise UserError(
                f"{self._estimate()}, and {existing} has {bytes_text(free)} free: {remedy}; "
                "or give `folder` another disk"
            )

    @torch.no_grad()
    def maps(self, batch: Batch, mask: Tensor | None) -> TeacherMaps:
        """What the live source would give, as it was stored.

        Args:
            batch: with `keys`; a sample without one is computed each time, and rounded as if it had been stored.
            mask: (N, H, W) bool, or None.
        """
        raw, present = self._read(batch)
        missing = np.flatnonzero(~present.all(axis=0)).tolist()
        for part in self._parts(missing, batch.images.device):
            fresh = self._live(batch, mask, part)
            for row, values, kept, stored in zip(raw, fresh, self.plan.kept, present, strict=True):
                encoded = kept.storage.encode(values).cpu().numpy()
                for i, data in zip(np.arange(len(batch))[part], encoded, strict=True):
                    if not stored[i]:
                        row[i] = data
        places = self._places(batch)
        for file, row, stored in zip(self.files, raw, present, strict=True):
            for i in missing:
                place = places[i]
                if place is not None and not stored[i]:
                    file.write(place, row[i])
        return self._assembled(raw, batch.images.device)

    @torch.no_grad()
    def check(self, batch: Batch, mask: Tensor | None, *, same_images: bool = True) -> int:
        """Compare the records of a batch with the live teacher; returns how many samples had any.

        Args:
            batch, mask: as in `maps`.
            same_images: False where the images that were stored may differ from these by rounding.

        Raises:
            UserError: a record differs by more than its storage's error and what arithmetic may differ by.
        """
        raw, present = self._read(batch)
        there = np.flatnonzero(present.any(axis=0)).tolist()
        device = batch.images.device
        exact = same_images and device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if any(teacher.dtype not in (None, torch.float32) for teacher in self.source.teachers):
            exact = False
        for part in self._parts(there, device):
            fresh = self._live(batch, mask, part)
            for row, live, kept, stored in zip(raw, fresh, self.plan.kept, present, strict=True):
                storage = kept.storage
                values = storage.decode(torch.from_numpy(row[part]).to(device))
                live = live.float()
                off = (storage.seen(values) - storage.seen(live)).abs()
                allowed = (
                    storage.error(live)
                    + (SAME if exact else OTHER) * storage.seen(live).abs().amax()
                )
                wrong = (~(off <= allowed)).flatten(1).any(1).cpu().numpy() & stored[part]
                if wrong.any():
                    name = np.array(batch.names)[part][wrong][0]
                    raise UserError(
                        f"what {self.folder} holds of {name} ({kept.name}) is not what this teacher gives for it: off "
                        f"by {off.max():.3g}, at most {allowed.max():.3g} was expected. It is stale: something that "
                        "its key does not know has changed (the code of the network, the data, the augmentation; "
                        "about.json there says what it was made from). Delete that folder"
                    )
        return len(there)

    def _places(self, batch: Batch) -> list[int | None]:
        """Where each sample's records stand: set by set, and in each epoch by epoch."""
        keys = batch.keys or [None] * len(batch)
        return [None if key is None else self._place(SampleKey(*key)) for key in keys]

    def _place(self, key: SampleKey) -> int:
        if key.source >= len(self.sizes):
            raise ValueError(
                f"a sample is of the set with the number {key.source}, and the store was made for {len(self.sizes)}; "
                "give images= the size of each set"
            )
        before = self.epochs * sum(self.sizes[: key.source])
        return before + key.epoch * self.sizes[key.source] + key.index

    def _read(self, batch: Batch) -> tuple[list[np.ndarray], np.ndarray]:
        """Stored bytes, (N, nbytes) a map, and which are there: (maps, N) bool."""
        raw = [np.empty((len(batch), kept.storage.nbytes), np.uint8) for kept in self.plan.kept]
        present = np.zeros((len(raw), len(batch)), dtype=bool)
        for i, place in enumerate(self._places(batch)):
            for m, (file, rows) in enumerate(zip(self.files, raw, strict=True)):
                present[m, i] = place is not None and file.read(place, rows[i])
                if not present[m, i]:
                    rows[i] = 0  # the whole batch is decoded, and no form takes any bytes whatever
        return raw, present

    def _parts(self, places: list[int], device: torch.device) -> Iterator[Any]:
        """The images of a batch that the teacher is given together."""
        if device.type == "cpu":
            yield from (slice(i, i + 1) for i in places)
        elif places:
            yield places

    def _live(self, batch: Batch, mask: Tensor | None, part: Any) -> list[Tensor]:
        maps = self.source.ask(batch.images[part])
        small = None if mask is None else mask[part]
        values = [kept.of(maps, small) for kept in self.plan.kept]
        for kept, x in zip(self.plan.kept, values, strict=True):
            if not bool(x.isfinite().all()):
                raise UserError(
                    f"the teacher gives NaN or infinity ({kept.name}) and such is not stored; check its weights, input "
                    "and precision"
                )
        return values

    def _assembled(self, raw: Sequence[np.ndarray], device: torch.device) -> TeacherMaps:
        values = [
            kept.storage.decode(torch.from_numpy(rows).to(device))
            for kept, rows in zip(self.plan.kept, raw, strict=True)
        ]

        def taken(places: Mapping[str, list[int]]) -> dict[str, list[Tensor]]:
            return {name: [values[i] for i in indices] for name, indices in places.items()}

        plan = self.plan
        reduced = {
            name: [plan.kept[i].size for i in indices]
            for name, indices in plan.levels.items()
            if plan.kept[indices[0]].wants is not None
        }
        holistic = None if plan.holistic is None else values[plan.holistic]
        return TeacherMaps(taken(plan.levels), taken(plan.confidence), holistic, reduced)
