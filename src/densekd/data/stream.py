"""The order of training samples, and what stands at each position of the stream.

The contract: what stands at position p is a pure function of (seed, p). With n samples, B per rank and R ranks,
position ``p = step * R * B + rank * B + i`` belongs to epoch ``p // n`` and holds sample
``order(seed, epoch, n)[p % n]``, augmented by `sample_rng(seed, epoch, index)`. So neither the number of workers nor an
interruption changes anything, and resuming at a step is starting at it. Where augmentations repeat after E epochs,
``epoch % E`` augments; the order goes on as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from densekd.errors import DataError, UserError
from densekd.types import SampleKey


def order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The permutation of an epoch's samples."""
    # The spawn key keeps this stream apart from sample_rng's, whose sequences start alike.
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(0,))).permutation(
        length
    )


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that augments one sample in one epoch."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch, index]))


class Entry(NamedTuple):
    """What stands at one position of the stream.

    Attributes:
        epoch: the epoch that the augmentation is drawn for.
        rng: the generator of the sample that is meant; with generators of their own, samples that stand in for an
            unreadable one would be seen twice alike.
        permutation: the order of the position's epoch.
        place: the position's place in it.
    """

    epoch: int
    rng: np.random.Generator
    permutation: np.ndarray
    place: int

    def candidates(self) -> Iterator[int]:
        """The sample that is meant, then those that stand in for it if it is unreadable."""
        for ahead in range(len(self.permutation)):
            yield int(self.permutation[(self.place + ahead) % len(self.permutation)])

    def key(self, index: int) -> SampleKey | None:
        """The key of the sample that was taken; None where it stands in for another."""
        return SampleKey(self.epoch, index) if index == self.permutation[self.place] else None


class Stream:
    """From a position, (epoch, place in the epoch's order), to what stands there."""

    def __init__(self, seed: int, length: int, augment_epochs: int | None) -> None:
        self.seed = seed
        self.length = length
        self.augment_epochs = augment_epochs
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def at(self, position: tuple[int, int]) -> Entry:
        epoch, place = position
        if self._order[0] != epoch:
            self._order = (epoch, order(self.seed, epoch, self.length))
        permutation = self._order[1]
        drawn_for = epoch if self.augment_epochs is None else epoch % self.augment_epochs
        rng = sample_rng(self.seed, drawn_for, int(permutation[place]))
        return Entry(drawn_for, rng, permutation, place)


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
