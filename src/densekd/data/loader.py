"""Loaders of batches for training (endless; see `densekd.data.stream`) and evaluation (each sample once)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from densekd.data.augment import Augment, Augmented, whole
from densekd.data.base import DenseSet, Sample
from densekd.data.collate import Item, Stacked, finish, stack
from densekd.data.stream import Positions, Stream, Together, check_stream, nothing_readable
from densekd.data.unlabelled import WithoutLabels
from densekd.data.workers import closed_at_exit, start_worker
from densekd.errors import DataError, UserError
from densekd.targets import kind_of_set
from densekd.types import Batch

Transform = Callable[[Sample, np.random.Generator], Augmented]


@dataclass(frozen=True)
class Unlabelled:
    """A second set of images, so many of which stand behind the first set's in every batch, without labels.

    Args:
        reader: any data set, or an `ImageFolder`; its labels are ignored.
        batch_size: images per rank and step.
        transform: as in `TrainLoader`; None takes that of the first set.
    """

    reader: DenseSet
    batch_size: int
    transform: Transform | None = None


class TrainLoader:
    """An endless stream of augmented batches; each `iter` starts at `start_step`.

    Args:
        reader: the data set.
        batch_size: samples per rank and step; may exceed the number of samples.
        seed: of order and augmentation.
        transform: sample and generator -> augmented sample; an `Augment`, or any function of that form.
        rank, world_size: this process among those that train together.
        workers: decoding processes; 0 decodes in this one.
        start_step: the first step to give.
        augment_epochs: augmentations repeat after so many epochs; None: never.
        on_bad_file: ``"stop"`` raises DataError when a bad file is met; ``"skip"`` takes the next
            readable sample of the epoch's order in its place and notes the file in `skipped`.
        pin_memory: None means where CUDA is available.
        skipped: a record to go on with, of name and reason of each skipped file; None begins an empty one.
        unlabelled: a second set, whose images are added to every batch.

    Attributes:
        skipped: name -> reason of the files skipped so far.
    """

    def __init__(
        self,
        reader: DenseSet,
        *,
        batch_size: int,
        seed: int = 0,
        transform: Transform | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        start_step: int = 0,
        augment_epochs: int | None = None,
        on_bad_file: str = "stop",
        pin_memory: bool | None = None,
        skipped: dict[str, str] | None = None,
        unlabelled: Unlabelled | None = None,
    ) -> None:
        check_stream(seed, start_step, augment_epochs)
        transform = fitting(transform, reader)
        sets = [(reader, batch_size, transform)]
        if unlabelled is not None:
            second = WithoutLabels(unlabelled.reader, reader)
            own = fitting(unlabelled.transform or transform, second)
            sets.append((second, unlabelled.batch_size, own))
        for each, size, _ in sets:
            check_loader(each, size, rank, world_size, workers, on_bad_file)
        self.reader = reader
        self.batch_size = batch_size
        self.start_step = start_step
        self.skipped = {} if skipped is None else skipped
        self._stride = world_size * batch_size
        self._loader = _torch_loader(
            _TrainItems(
                [(each, own) for each, _, own in sets], seed, on_bad_file == "skip", augment_epochs
            ),
            Together(
                [Positions(len(each), size, rank, world_size, start_step) for each, size, _ in sets]
            ),
            _Packer(getattr(transform, "fill", 0), reader.ignore_index),
            workers,
            pin_memory,
        )

    def epoch(self, step: int) -> float:
        """How often the whole set (the first of two) has been seen when `step` begins."""
        return step * self._stride / len(self.reader)

    def __iter__(self) -> Iterator[Batch]:
        return closed_at_exit(_batches(self._loader, self.skipped))


def fitting(transform: Transform | None, reader: DenseSet) -> Transform:
    """The transform, where it pads labels with what the reader ignores; None means an `Augment`."""
    if transform is None:
        return Augment(ignore_index=reader.ignore_index)
    ignore_index = getattr(transform, "ignore_index", reader.ignore_index)
    if ignore_index != reader.ignore_index:
        raise UserError(
            f"the augmentation pads labels with {ignore_index} and the data set ignores {reader.ignore_index}; "
            "set both alike"
        )
    return transform


class EvalLoader:
    """Each sample once over all ranks, whole and in order: rank r has samples r, r + R, r + 2R, ...

    Nothing is dropped or doubled to even out the last batches, so ranks may differ by one sample: counts
    are to be summed over ranks at the end, not batch by batch.

    Args:
        reader, rank, world_size, workers, pin_memory, skipped: as in `TrainLoader`.
        batch_size: images of different size in a batch are padded (see `collate`), which the network sees:
            1, the default, always evaluates images as they are.
        fill: colour of that padding.
        limit: only the first so many samples of the set.
        on_bad_file: ``"stop"``, or ``"skip"``, which leaves the sample out and notes it in `skipped`.

    Attributes:
        skipped: name -> reason of the files left out so far.
    """

    def __init__(
        self,
        reader: DenseSet,
        *,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        fill: int | Sequence[int] = 0,
        limit: int | None = None,
        on_bad_file: str = "stop",
        pin_memory: bool | None = None,
        skipped: dict[str, str] | None = None,
    ) -> None:
        check_loader(reader, batch_size, rank, world_size, workers, on_bad_file)
        count = len(reader) if limit is None else min(limit, len(reader))
        indices = range(rank, count, world_size)
        self.reader = reader
        self.skipped = {} if skipped is None else skipped
        self._batches = [
            list(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)
        ]
        self._loader = _torch_loader(
            _EvalItems(reader, on_bad_file == "skip"),
            self._batches,
            _Packer(fill, reader.ignore_index),
            workers,
            pin_memory,
        )

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return closed_at_exit(_batches(self._loader, self.skipped))


class _Fetched(NamedTuple):
    """What a worker hands back for one sample: an item, or why there is none."""

    item: Item | None
    skipped: dict[str, str]
    error: UserError | None = None


class _TrainItems(Dataset):
    def __init__(
        self,
        sets: Sequence[tuple[DenseSet, Transform]],
        seed: int,
        skip_bad: bool,
        augment_epochs: int | None,
    ) -> None:
        self.sets = sets
        self.skip_bad = skip_bad
        self.streams = [
            Stream(seed, len(reader), augment_epochs, source)
            for source, (reader, _) in enumerate(sets)
        ]

    def __getitem__(self, index: tuple[int, tuple[int, int]]) -> _Fetched:
        source, position = index
        reader, transform = self.sets[source]
        entry = self.streams[source].at(position)
        skipped: dict[str, str] = {}
        for number in entry.candidates():
            try:
                sample = reader.read(number)
                labelled = sample.target is not None
                image, target, inside = transform(with_target(reader, sample), entry.rng)
            except DataError as error:
                if not self.skip_bad:
                    return _Fetched(None, skipped, error)
                skipped[reader.name(number)] = str(error)
                continue
            except UserError as error:
                return _Fetched(None, skipped, error)
            key = entry.key(number)
            return _Fetched(Item(image, target, inside, labelled, sample.name, key), skipped)
        return _Fetched(None, skipped, nothing_readable(skipped))


def with_target(reader: DenseSet, sample: Sample) -> Sample:
    """The sample, with an empty target where it has none."""
    if sample.target is not None:
        return sample
    return replace(sample, target=empty_target(reader, sample.image.shape[:2]))


def empty_target(reader: DenseSet, size: tuple[int, int]) -> Any:
    """The target of an image (height, width) of this set of which nothing is known."""
    return kind_of_set(reader).empty(size, reader.ignore_index)


class _EvalItems(Dataset):
    def __init__(self, reader: DenseSet, skip_bad: bool) -> None:
        self.reader = reader
        self.skip_bad = skip_bad

    def __getitem__(self, index: int) -> _Fetched:
        try:
            sample = self.reader.read(index)
        except DataError as error:
            if self.skip_bad:
                return _Fetched(None, {self.reader.name(index): str(error)})
            return _Fetched(None, {}, error)
        labelled = sample.target is not None
        item = whole(with_target(self.reader, sample), self.reader.ignore_index)
        return _Fetched(Item(*item, labelled, sample.name), {})


_Packed = tuple[Stacked | None, dict[str, str], UserError | None]


class _Packer:
    """The collate function of torch's loader, run in the workers."""

    def __init__(self, fill: int | Sequence[int], ignore_index: int) -> None:
        self.fill = fill
        self.ignore_index = ignore_index

    def __call__(self, fetched: list[_Fetched]) -> _Packed:
        skipped = {name: reason for one in fetched for name, reason in one.skipped.items()}
        # Errors travel as values: torch would wrap a raised one in a worker's traceback text.
        error = next((one.error for one in fetched if one.error is not None), None)
        items = [one.item for one in fetched if one.item is not None]
        if error is not None or not items:
            return None, skipped, error
        try:
            return stack(items, self.fill, self.ignore_index), skipped, None
        except UserError as failed:
            return None, skipped, failed


def _batches(loader: DataLoader, skipped: dict[str, str]) -> Generator[Batch, None, None]:
    for stacked, newly_skipped, error in loader:
        skipped.update(newly_skipped)
        if error is not None:
            raise error
        if stacked is not None:  # else every sample of an evaluation batch was skipped
            yield finish(stacked)


def _torch_loader(
    dataset: Dataset, batches: Any, packer: _Packer, workers: int, pin: bool | None
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=packer,
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available() if pin is None else pin,
        # A private generator: making an iterator must not advance the global one.
        generator=torch.Generator().manual_seed(0),
    )


def check_loader(
    reader: DenseSet,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int,
    on_bad_file: str,
) -> None:
    """DataError for an empty set, UserError for numbers out of range."""
    if len(reader) == 0:
        raise DataError("the data set is empty; expected at least one sample")
    if batch_size < 1 or workers < 0:
        raise UserError(
            f"batch_size is {batch_size} and workers {workers}; expected at least 1 and at least 0"
        )
    if not 0 <= rank < world_size:
        raise UserError(f"rank is {rank} of {world_size}; expected 0 <= rank < world_size")
    if on_bad_file not in ("stop", "skip"):
        raise UserError(f"on_bad_file is {on_bad_file!r}; expected 'stop' or 'skip'")
