"""Ranks as threads of one process, so that a test of what runs over ranks takes no process start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from densekd.ops import collectives


class Group:
    """Stands in for `torch.distributed`; every rank must make the same calls, or the test ends with an error."""

    ReduceOp = SimpleNamespace(SUM="sum", MAX="max")

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = 0
        self._here = threading.local()
        self._barrier = threading.Barrier(size, timeout=20)
        self._parts: list[Any] = [None] * size

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return self.size

    def get_rank(self) -> int:
        return self._here.rank

    def all_reduce(self, x: Tensor, op: str) -> None:
        self._parts[self.get_rank()] = x.clone()
        self._barrier.wait()
        assert len({(part.shape, part.dtype) for part in self._parts}) == 1
        stacked = torch.stack(self._parts)
        self._barrier.wait()
        x.copy_(stacked.sum(0) if op == "sum" else stacked.amax(0))
        self.calls += self.get_rank() == 0

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What `work(rank)` gives, in the order of the ranks."""

        def of_rank(rank: int) -> Any:
            self._here.rank = rank
            try:
                return work(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(of_rank, range(self.size)))


def on_ranks(size: int, work: Callable[[int], Any], monkeypatch) -> tuple[list[Any], int]:
    """Run `work(rank)` on `size` ranks within `over_ranks`: its results, and the calls of all_reduce of a rank."""
    group = Group(size)
    with monkeypatch.context() as patch, collectives.over_ranks():
        patch.setattr(collectives, "dist", group)
        return group.run(work), group.calls
