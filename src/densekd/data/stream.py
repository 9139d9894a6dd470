"""The order of training samples, and what stands at each position of the stream.

The contract: what stands at position p is a pure function of (seed, p). With n samples, B per rank and R ranks,
position ``p = step * R * B + rank * B + i`` belongs to epoch ``p // n`` and holds sample
``order(seed, epoch, n)[p % n]``, augmented by `sample_rng(seed, epoch, index)`. So neither the number of workers nor an
interruption changes anything, and resuming at a step is starting at it. Where augmentations repeat after E epochs,
``epoch % E`` augments; the order goes on as before.

A second set has a stream of its own with its own n and B, and its number (`SampleKey.source`, from 1) in its seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from densekd.errors import DataError, UserError
from densekd.types import SampleKey


def order(seed: int, epoch: int, length: int, source: int = 0) -> np.ndarray:
    """The permutation of an epoch's samples, of the set with the number `source`."""
    # The spawn key keeps this stream apart from sample_rng's, whose sequences start alike.
    key = (0, source) if source else (0,)
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=key)).permutation(
        length
    )


def sample_rng(seed: int, epoch: int, index: int, source: int = 0) -> np.random.Generator:
    """The generator that augments one sample in one epoch, of the set with the number `source`."""
    key = (1, source) if source else ()
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, index], spawn_key=key))


class Entry(NamedTuple):
    """What stands at one position of the stream.

    Attributes:
        epoch: the epoch that the augmentation is drawn for.
        rng: the generator of the sample that is meant; with generators of their own, samples that stand in for an
            unreadable one would be seen twice alike.
        permutation: the order of the position's epoch.
        place: the position's place in it.
        source: the number of the set.
    """

    epoch: int
    rng: np.random.Generator
    permutation: np.ndarray
    place: int
    source: int = 0

    def candidates(self) -> Iterator[int]:
        """The sample that is meant, then those that stand in for it if it is unreadable."""
        for ahead in range(len(self.permutation)):
            yield int(self.permutation[(self.place + ahead) % len(self.permutation)])

    def key(self, index: int) -> SampleKey | None:
        """The key of the sample that was taken; None where it stands in for another."""
        meant = index == self.permutation[self.place]
        return SampleKey(self.epoch, index, self.source) if meant else None


class Stream:
    """From a position, (epoch, place in the epoch's order), to what stands there."""

    def __init__(self, seed: int, length: int, augment_epochs: int | None, source: int = 0) -> None:
        self.seed = seed
        self.source = source
        self.length = length
        self.augment_epochs = augment_epochs
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def at(self, position: tuple[int, int]) -> Entry:
        epoch, place = position
        if self._order[0] != epoch:
            self._order = (epoch, order(self.seed, epoch, self.length, self.source))
        permutation = self._order[1]
        drawn_for = epoch if self.augment_epochs is None else epoch % self.augment_epochs
        rng = sample_rng(self.seed, drawn_for, int(permutation[place]), self.source)
        return Entry(drawn_for, rng, permutation, place, self.source)


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


class Together:
    """The positions of several streams in one list a step: the first stream's, then the next one's."""

    def __init__(self, streams: Sequence[Positions]) -> None:
        self.streams = streams

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, int]]]]:
        """Yields (number of the stream, position in it)."""
        for step in zip(*self.streams, strict=True):
            yield [(source, position) for source, part in enumerate(step) for position in part]


def check_stream(seed: int, start_step: int, augment_epochs: int | None) -> None:
    """UserError where one of them is out of range."""
    if augment_epochs is not None and augment_epochs < 1:
        raise UserError(f"augment_epochs is {augment_epochs}; expected 1 or more, or none")
    if seed < 0 or start_step < 0:
        raise UserError(f"seed is {seed} and start_step {start_step}; expected 0 or more")


def nothing_readable(skipped: dict[str, str]) -> DataError:
    """The end of a stream that skips unreadable samples: it has nothing else."""
    reason = next(iter(skipped.values()))
    return DataError(f"none of {len(skipped)} samples is readable; first: {reason}")
