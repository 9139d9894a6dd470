"""What the teacher says of each augmented sample, stored: asked once, compared with by many students and epochs.

Image and target of a sample are a function of its key (`Batch.keys`), and a teacher in eval mode sees each image alone:
so is everything the terms take of it. Stored is what the terms use: each map at the size at which it is compared, a
loss's own reduction where it has one (`reduce`; pair-wise: its nodes), in fixed places of one file a map.

A value that was computed is used as it was stored, so it makes no difference whether a sample's record was there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from densekd.distill.stored.codec import FORMS, Storage, make_storage
from densekd.distill.stored.records import RecordFile
from densekd.distill.teacher import Teacher
from densekd.distill.terms import (
    PREDICTION,
    TeacherMaps,
    Term,
    ask_teacher,
    check_levels,
    compared_size,
    select,
    teacher_maps,
)
from densekd.errors import UserError
from densekd.losses import PixelWise
from densekd.models.taps import evaluating
from densekd.ops.files import write_text
from densekd.ops.names import bytes_text
from densekd.ops.resize import resize_labels, resize_map
from densekd.tasks import Task
from densekd.types import Batch, DenseOutput

FORMAT = 1  # of files and their keys; a new one finds none of the old records
# What two computations of one map may differ by, as a share of its largest value: the same arithmetic in another order,
# and arithmetic in half precision or on a GPU.
SAME, OTHER = 1e-3, 5e-2


@dataclass
class Kept:
    """One map that is stored of each sample.

    Attributes:
        kind: ``"map"``, ``"confidence"`` or ``"holistic"``: where in `TeacherMaps` it stands.
        term: a term that compares it; empty for the discriminator's.
        level: of that term.
        size: (h, w) it is compared at, or its own where a loss enlarges it itself.
        loss: reduces it before it is stored; None stores the map.
        storage: its bytes.
        name: of its file.
    """

    kind: str
    term: str
    level: int
    size: tuple[int, int]
    loss: nn.Module | None
    storage: Storage
    name: str

    def of(self, maps: TeacherMaps, mask: Tensor | None) -> Tensor:
        """This map, of a live teacher's maps."""
        if self.kind == "holistic":
            assert maps.holistic is not None
            return resize_map(maps.holistic, self.size)
        levels = maps.levels if self.kind == "map" else maps.confidence
        x = resize_map(levels[self.term][self.level], self.size)
        if self.loss is None:
            return x
        return _reduced(self.loss, x, None if mask is None else resize_labels(mask, self.size))


@dataclass
class Plan:
    """What is stored of a sample, and which of it each term takes: places in `kept`, one a level."""

    kept: list[Kept] = field(default_factory=list)
    levels: dict[str, list[int]] = field(default_factory=dict)
    confidence: dict[str, list[int]] = field(default_factory=dict)
    holistic: int | None = None

    @property
    def nbytes(self) -> int:
        """Of a sample, with the checksums."""
        return sum(one.storage.nbytes + 4 for one in self.kept)

    def __str__(self) -> str:
        return ", ".join(
            f"{k.name.rpartition('-')[0]} {bytes_text(k.storage.nbytes)}" for k in self.kept
        )


@torch.no_grad()
def make_plan(
    student: nn.Module,
    teacher: Teacher,
    terms: Sequence[Term],
    task: Task,
    images: Tensor,
    *,
    holistic: nn.Module | None = None,
    mask: str = "label",
    storage: str = "fp16",
    top_k: int = 4,
) -> Plan:
    """What has to be stored so that the terms can do without the teacher, found by one forward pass of both networks.

    Args:
        images: (N, C, H, W) of the size of all others; the first is enough.
        holistic: the discriminator, where there is one.
        mask: the kind of mask that reductions are made under.
        storage: ``"fp16"``, ``"int8"``, or ``"top_k"`` for class maps (whatever else is stored in int8).
        top_k: probabilities kept.

    Raises:
        UserError: `top_k` does not fit what the terms see of the teacher's prediction.
        ValueError: an unknown storage, or levels that do not go together.
    """
    if storage not in FORMS:
        raise ValueError(f"storage is {storage!r}; choose one of {FORMS}")
    with evaluating(student):
        mine: DenseOutput = student(images[:1])
    output = teacher(images[:1])
    theirs = teacher_maps(terms, output, task, holistic=holistic is not None)
    # The discriminator of class maps looks at the prediction itself.
    same = theirs.holistic is select(output, PREDICTION, task)[0]
    plan = Plan()
    known: dict[str, int] = {}

    def keep(
        kind: str, what: str, size: tuple[int, int], values: Tensor, form: str, **more: Any
    ) -> int:
        """The place of such a map, stored once however many terms take it."""
        made = make_storage(form, (values.shape[1], values.shape[2], values.shape[3]), top_k)
        described = f"{what} {size} {made}"
        if described not in known:
            known[described] = len(plan.kept)
            short = "".join(c if c.isalnum() or c in "._" else "_" for c in what.split(" ")[0])
            grid = f"{values.shape[2]}x{values.shape[3]}"
            name = f"{short}-{grid}-{form}-{_digest(described)[:8]}"
            plan.kept.append(Kept(kind, size=size, storage=made, name=name, **more))
        return known[described]

    other = "int8" if storage == "top_k" else storage
    prediction = other
    if storage == "top_k":
        channels = select(output, PREDICTION, task)[0].shape[1]
        prediction = _class_form(terms, holistic if same else None, channels, top_k)
    for term in terms:
        pairs = select(mine, term.student, task), theirs.levels[term.name]
        check_levels(term, *pairs)
        for level, (s, t) in enumerate(zip(*pairs, strict=True)):
            size = _stored_size(term.loss, s, t)
            at = {"term": term.name, "level": level}
            values, what, loss = resize_map(t, size), f"{term.teacher} {level}", None
            form = prediction if term.teacher == PREDICTION else other
            if hasattr(term.loss, "reduce"):
                loss, form = term.loss, other
                values = _reduced(loss, values, None)
                what = (
                    f"{term.teacher}_{type(loss).__name__} {level} {_arguments(loss)} mask {mask}"
                )
            index = keep("map", what, size, values, form, loss=loss, **at)
            plan.levels.setdefault(term.name, []).append(index)
            if term.confidence:
                sure = resize_map(theirs.confidence[term.name][level], size)
                index = keep(
                    "confidence", f"confidence {level}", size, sure, other, loss=None, **at
                )
                plan.confidence.setdefault(term.name, []).append(index)
    if holistic is not None:
        assert theirs.holistic is not None
        size = compared_size(task.holistic_map(mine), theirs.holistic)
        what, form = (f"{PREDICTION} 0", prediction) if same else ("holistic", other)
        values = resize_map(theirs.holistic, size)
        plan.holistic = keep("holistic", what, size, values, form, term="", level=0, loss=None)
    return plan


def _class_form(terms: Sequence[Term], holistic: Any, channels: int, top_k: int) -> str:
    """Whether everything that looks at the prediction sees its softmax alone, so that `top_k` serves it."""
    if top_k >= channels:
        raise UserError(
            f"distill.teacher_cache.top_k is {top_k} of {channels} classes: nothing would be saved; take fewer, or "
            "storage int8"
        )
    others = [
        term.name
        for term in terms
        if term.teacher == PREDICTION
        and not (isinstance(term.loss, PixelWise) and term.loss.form == "softmax")
    ]
    if holistic is not None and holistic.activation != "softmax":
        others.append("holistic")
    if others:
        raise UserError(
            f"distill.teacher_cache.storage top_k keeps probabilities of a softmax, and {', '.join(others)} sees the "
            "prediction in another form; take fp16 or int8"
        )
    return "top_k"


def _stored_size(loss: nn.Module, student: Tensor, teacher: Tensor) -> tuple[int, int]:
    """(h, w) of the smallest teacher's map that a loss can do with."""
    size = getattr(loss, "size", None)
    if size is None:
        return compared_size(student, teacher)
    # The loss resizes both maps to its own size: a smaller teacher's map stays as it is until then.
    own = (teacher.shape[-2], teacher.shape[-1])
    return own if own[0] * own[1] < size[0] * size[1] else (size[0], size[1])


def _reduced(loss: Any, values: Tensor, mask: Tensor | None) -> Tensor:
    return loss.reduce(values, mask)


def _arguments(loss: nn.Module) -> str:
    """What a loss was built with: its reduction may depend on it."""
    given = {k: v for k, v in vars(loss).items() if k not in vars(nn.Module())}
    return f"{type(loss).__module__}.{type(loss).__qualname__} {sorted(given.items())}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class TeacherCache:
    """The teacher's side of the terms, from files; what is missing there is computed and stored.

    On the CPU the teacher sees images one at a time, so that a record is bit for bit the same in whatever batch its
    sample came; on a GPU the missing images of a batch go together.

    Args:
        teacher: asked for what is missing.
        terms, task: of the distiller.
        plan: from `make_plan`.
        folder: of all stores; this one lies in a folder below it that is named by `identity`.
        identity: all that the maps depend on: teacher, data, augmentation, seed. Plain values, as in JSON.
        images, epochs: of the set, and after how many the augmentations repeat.
        disk_gb: the largest size of the files, in 10⁹ bytes.

    Raises:
        UserError: the files would be larger than `disk_gb`, or than what is free on the disk. Nothing is written then.
    """

    def __init__(
        self,
        teacher: Teacher,
        terms: Sequence[Term],
        task: Task,
        plan: Plan,
        *,
        folder: Path,
        identity: Mapping[str, Any],
        images: int,
        epochs: int,
        disk_gb: float = 20.0,
    ) -> None:
        self.teacher = teacher
        self.terms = list(terms)
        self.task = task
        self.plan = plan
        self.images = images
        self.records = images * epochs
        about = {"format": FORMAT, "images": images, "epochs": epochs, **identity}
        text = json.dumps(about, sort_keys=True, indent=1)
        self.folder = folder / _digest(text)
        self._refuse(disk_gb)
        self.files = [
            RecordFile(self.folder / f"{kept.name}.maps", self.records, kept.storage.nbytes)
            for kept in plan.kept
        ]
        if not (self.folder / "about.json").exists():
            write_text(self.folder / "about.json", text)

    @property
    def nbytes(self) -> int:
        """Of the full files."""
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
        remedy = (
            "take fewer data.augment_epochs, a smaller distill.teacher_cache.storage (int8, top_k), or a larger "
            "granularity of the pair-wise term"
        )
        if self.nbytes > disk_gb * 1e9:
            raise UserError(
                f"distill.teacher_cache: {self._estimate()}, more than disk_gb {disk_gb:g}: {remedy}; or raise disk_gb"
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
                f"distill.teacher_cache: {self._estimate()}, and {existing} has {bytes_text(free)} free: {remedy}; or "
                "give distill.teacher_cache.folder another disk"
            )

    @torch.no_grad()
    def maps(self, batch: Batch, mask: Tensor | None) -> TeacherMaps:
        """What `densekd.distill.terms.teacher_maps` would give, as it was stored.

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
        if self.teacher.dtype not in (None, torch.float32):
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
                        f"teacher cache: what {self.folder} holds of {name} ({kept.name}) is not what this teacher "
                        f"says of it: off by {off.max():.3g}, at most {allowed.max():.3g} was expected. It is stale: "
                        "something that its key does not know has changed (the code of the network, the data, the "
                        "augmentation; about.json there says what it was made from). Delete that folder"
                    )
        return len(there)

    def _places(self, batch: Batch) -> list[int | None]:
        """Where each sample's records stand."""
        keys = batch.keys or [None] * len(batch)
        return [None if key is None else key[0] * self.images + key[1] for key in keys]

    def _read(self, batch: Batch) -> tuple[list[np.ndarray], np.ndarray]:
        """Stored bytes, (N, nbytes) a map, and which are there: (maps, N) bool."""
        raw = [np.empty((len(batch), kept.storage.nbytes), np.uint8) for kept in self.plan.kept]
        present = np.zeros((len(raw), len(batch)), dtype=bool)
        for i, place in enumerate(self._places(batch)):
            for m, (file, rows) in enumerate(zip(self.files, raw, strict=True)):
                present[m, i] = place is not None and file.read(place, rows[i])
        return raw, present

    def _parts(self, places: list[int], device: torch.device) -> Iterator[Any]:
        """The images of a batch that the teacher sees together."""
        if device.type == "cpu":
            yield from (slice(i, i + 1) for i in places)
        elif places:
            yield places

    def _live(self, batch: Batch, mask: Tensor | None, part: Any) -> list[Tensor]:
        holistic = self.plan.holistic is not None
        maps = ask_teacher(
            self.teacher, batch.images[part], self.terms, self.task, holistic=holistic
        )
        small = None if mask is None else mask[part]
        values = [kept.of(maps, small) for kept in self.plan.kept]
        for kept, x in zip(self.plan.kept, values, strict=True):
            if not bool(x.isfinite().all()):
                raise UserError(
                    f"distill.teacher_cache: the teacher gives NaN or infinity ({kept.name}) and such is not stored; "
                    "check its weights, input and precision"
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
            if plan.kept[indices[0]].loss is not None
        }
        seen = None if plan.holistic is None else values[plan.holistic]
        return TeacherMaps(taken(plan.levels), taken(plan.confidence), seen, reduced)
