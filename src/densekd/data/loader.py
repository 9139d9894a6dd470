"""Batches for training (endless) and evaluation (each sample once).

The contract of training: what stands at position p of the stream is a pure function of (seed, p). With
n samples, B per rank and R ranks, position ``p = step * R * B + rank * B + i`` belongs to epoch ``p // n``
and holds sample ``order(seed, epoch, n)[p % n]``, augmented by `sample_rng(seed, epoch, index)`. So neither
the number of workers nor an interruption changes anything, and resuming at a step is starting at it. Where
augmentations repeat after E epochs, ``epoch % E`` augments; the order goes on as before.
"""

from __future__ import annotations

import atexit
import signal
import sys
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from densekd.data.augment import Augment, Augmented, pad, whole
from densekd.data.base import DenseSet, Sample, task_of
from densekd.errors import DataError, UserError
from densekd.targets import BoxTarget, DepthTarget, empty_target, to_boxes, to_depth_maps
from densekd.types import Batch, DepthMaps

Transform = Callable[[Sample, np.random.Generator], Augmented]


def order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The permutation of an epoch's samples."""
    # The spawn key keeps this stream apart from sample_rng's, whose sequences start alike.
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(0,))).permutation(
        length
    )


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that augments one sample in one epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, index]))


class Item(NamedTuple):
    """One sample on its way into a batch."""

    image: np.ndarray  # (H, W, C) uint8
    target: Any
    inside: np.ndarray  # (H, W) bool
    labelled: bool
    name: str
    key: tuple[int, int] | None = None  # see `Batch.keys`


class _DepthPair(NamedTuple):
    """`DepthMaps` on their way out of a worker, in a form whose memory torch pins."""

    depth: torch.Tensor
    intrinsics: torch.Tensor


# A batch as plain containers: torch pins the memory of tensors in tuples, but not in our Batch.
_Stacked = tuple[
    torch.Tensor, Any, torch.Tensor, torch.Tensor, list[str], list[tuple[int, int] | None]
]


def collate(
    items: Sequence[Item], *, fill: int | Sequence[int] = 0, ignore_index: int = 255
) -> Batch:
    """Items -> a batch with uint8 images.

    Targets become (N, H, W) class maps of the set's own integers (`Batch.to` makes them int64), a list of `Boxes`, or
    `DepthMaps`; a list of anything else stays one.
    Images of different size are padded at the bottom and right to the largest: `fill`, ignore_index or unknown
    depth, and False in `inside`.
    """
    return _finished(*_stacked(items, fill, ignore_index))


def _stacked(items: Sequence[Item], fill: int | Sequence[int], ignore_index: int) -> _Stacked:
    """A batch but for its boxes, which are still arrays."""
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
    if all(isinstance(target, np.ndarray) for target in targets):
        # As they are, mostly uint8: int64 is eight times as much to hand over to the main process and to a GPU.
        targets = torch.from_numpy(np.stack(targets))
    elif all(isinstance(target, DepthTarget) for target in targets):
        maps = to_depth_maps(targets)
        targets = _DepthPair(maps.depth, maps.intrinsics)
    return (
        torch.from_numpy(images),
        targets,
        torch.tensor([item.labelled for item in items]),
        torch.from_numpy(np.stack([item.inside for item in items])),
        [item.name for item in items],
        [item.key for item in items],
    )


def _to_planes(image: np.ndarray, planes: np.ndarray) -> None:
    """(H, W, C) uint8 into (C, H, W) of contiguous planes."""
    if image.shape[2] != len(planes):
        raise ValueError(f"images of {len(planes)} and {image.shape[2]} channels in one batch")
    # A quarter of the time of NumPy's copy.
    cv2.split(image, list(planes))


def _finished(
    images: torch.Tensor,
    targets: Any,
    labelled: torch.Tensor,
    inside: torch.Tensor,
    names: list[str],
    keys: list[tuple[int, int] | None],
) -> Batch:
    """Boxes become tensors only here, out of the workers: each tensor that a worker hands over costs an open file,
    and four an image would soon use up what a process may have."""
    if isinstance(targets, _DepthPair):
        targets = DepthMaps(*targets)
    elif isinstance(targets, list) and all(isinstance(t, BoxTarget) for t in targets):
        targets = [to_boxes(t, _extent(seen)) for t, seen in zip(targets, inside, strict=True)]
    return Batch(images, targets, labelled, inside, names, keys)


def _extent(inside: torch.Tensor) -> tuple[int, int]:
    """(H, W) bool -> (height, width) of what is no padding, which lies at the bottom and on the right."""
    return int(inside.any(1).sum()), int(inside.any(0).sum())


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
        on_bad_file: ``"stop"`` raises DataError when a bad file's turn comes; ``"skip"`` takes the next
            readable sample of the epoch's order in its place and notes the file in `skipped`.
        pin_memory: None means where CUDA is available.

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
    ) -> None:
        check_loader(reader, batch_size, rank, world_size, workers, on_bad_file)
        check_stream(seed, start_step, augment_epochs)
        transform = fitting(transform, reader)
        self.reader = reader
        self.batch_size = batch_size
        self.start_step = start_step
        self.skipped: dict[str, str] = {}
        self._stride = world_size * batch_size
        self._loader = _torch_loader(
            _TrainItems(reader, transform, seed, on_bad_file == "skip", augment_epochs),
            Positions(len(reader), batch_size, rank, world_size, start_step),
            _Packer(getattr(transform, "fill", 0), reader.ignore_index),
            workers,
            pin_memory,
        )

    def epoch(self, step: int) -> float:
        """How often the whole set has been seen when `step` begins."""
        return step * self._stride / len(self.reader)

    def __iter__(self) -> Iterator[Batch]:
        return closed_at_exit(_batches(self._loader, self.skipped))


def check_stream(seed: int, start_step: int, augment_epochs: int | None) -> None:
    """UserError where one of them is out of range."""
    if augment_epochs is not None and augment_epochs < 1:
        raise UserError(f"augment_epochs is {augment_epochs}; expected 1 or more, or none")
    if seed < 0 or start_step < 0:
        raise UserError(f"seed is {seed} and start_step {start_step}; expected 0 or more")


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
        reader, rank, world_size, workers, pin_memory: as in `TrainLoader`.
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
    ) -> None:
        check_loader(reader, batch_size, rank, world_size, workers, on_bad_file)
        count = len(reader) if limit is None else min(limit, len(reader))
        indices = range(rank, count, world_size)
        self.reader = reader
        self.skipped: dict[str, str] = {}
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


class Turn(NamedTuple):
    """What stands at one position of the stream."""

    look: int  # epoch of the augmentation
    rng: (
        np.random.Generator
    )  # of the sample that is meant: with their own, stand-ins would be seen twice alike
    permutation: np.ndarray  # the epoch's order
    place: int  # in it

    def candidates(self) -> Iterator[int]:
        """The sample that is meant, then those that stand in for it if it is unreadable."""
        for ahead in range(len(self.permutation)):
            yield int(self.permutation[(self.place + ahead) % len(self.permutation)])

    def key(self, drawn: int) -> tuple[int, int] | None:
        """See `Batch.keys`."""
        return (self.look, drawn) if drawn == self.permutation[self.place] else None


class Turns:
    """From a position, (epoch, place in the epoch's order), to what stands there."""

    def __init__(self, seed: int, length: int, augment_epochs: int | None) -> None:
        self.seed = seed
        self.length = length
        self.augment_epochs = augment_epochs
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def at(self, position: tuple[int, int]) -> Turn:
        epoch, place = position
        if self._order[0] != epoch:
            self._order = (epoch, order(self.seed, epoch, self.length))
        permutation = self._order[1]
        look = epoch if self.augment_epochs is None else epoch % self.augment_epochs
        rng = sample_rng(self.seed, look, int(permutation[place]))
        return Turn(look, rng, permutation, place)


def nothing_readable(skipped: dict[str, str]) -> DataError:
    """The end of a stream that skips unreadable samples: it has nothing else."""
    reason = next(iter(skipped.values()))
    return DataError(f"none of {len(skipped)} samples is readable; first: {reason}")


class Positions:
    """Endless lists of stream positions, one list a step: a batch sampler for torch's DataLoader."""

    def __init__(
        self, length: int, batch_size: int, rank: int, world_size: int, start: int
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.offset = rank * batch_size
        self.stride = world_size * batch_size
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields (epoch, place in the epoch's order)."""
        first = self.start * self.stride + self.offset
        while True:
            yield [divmod(first + i, self.length) for i in range(self.batch_size)]
            first += self.stride


class _Fetched(NamedTuple):
    """What a worker hands back for one sample: an item, or why there is none."""

    item: Item | None
    skipped: dict[str, str]
    error: UserError | None = None


class _TrainItems(Dataset):
    def __init__(
        self,
        reader: DenseSet,
        transform: Transform,
        seed: int,
        skip_bad: bool,
        augment_epochs: int | None,
    ) -> None:
        self.reader = reader
        self.transform = transform
        self.skip_bad = skip_bad
        self.turns = Turns(seed, len(reader), augment_epochs)

    def __getitem__(self, index: tuple[int, int]) -> _Fetched:
        turn = self.turns.at(index)
        skipped: dict[str, str] = {}
        for drawn in turn.candidates():
            try:
                sample = self.reader.read(drawn)
                labelled = sample.target is not None
                image, target, inside = self.transform(self._with_target(sample), turn.rng)
            except DataError as error:
                if not self.skip_bad:
                    return _Fetched(None, skipped, error)
                skipped[self.reader.name(drawn)] = str(error)
                continue
            except UserError as error:
                return _Fetched(None, skipped, error)
            key = turn.key(drawn)
            return _Fetched(Item(image, target, inside, labelled, sample.name, key), skipped)
        return _Fetched(None, skipped, nothing_readable(skipped))

    def _with_target(self, sample: Sample) -> Sample:
        if sample.target is not None:
            return sample
        size = sample.image.shape[:2]
        return replace(
            sample, target=empty_target(task_of(self.reader), size, self.reader.ignore_index)
        )


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
        item = whole(sample, self.reader.ignore_index, task_of(self.reader))
        return _Fetched(Item(*item, labelled, sample.name), {})


_Packed = tuple[_Stacked | None, dict[str, str], UserError | None]


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
            return _stacked(items, self.fill, self.ignore_index), skipped, None
        except UserError as failed:
            return None, skipped, failed


# Workers ignore SIGTERM (see start_worker), so multiprocessing, which sends it when the interpreter ends,
# would wait for them for ever: streams still open are closed before, which tells the workers to go.
_open_streams: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    for stream in list(_open_streams):
        stream.close()


def closed_at_exit(stream: Generator) -> Generator:
    """The same generator, closed before the interpreter waits for its worker processes."""
    _open_streams.add(stream)
    return stream


def _batches(loader: DataLoader, skipped: dict[str, str]) -> Generator[Batch, None, None]:
    for fields, newly_skipped, error in loader:
        skipped.update(newly_skipped)
        if error is not None:
            raise error
        if fields is not None:  # else every sample of an evaluation batch was skipped
            yield _finished(*fields)


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


def start_worker(_: int) -> None:
    """What each decoding process sets up before its first sample."""
    # One thread a process: threads that fight for cores multiply the time of everything.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # Ctrl-C, and a SIGTERM to the whole group, reach workers too; the main process decides what happens
    # then (it may want one more batch and a checkpoint) and ends them itself.
    # When the main process is killed, threads that share memory with it lose their connection: no news to anyone.
    sys.excepthook = _say_unless_disconnected
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _say_unless_disconnected(kind: type[BaseException], *rest: Any) -> None:
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, *rest)


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
