"""The only calls into torch.distributed's primitives. Every one is a no-op in a single process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, in place, without gradient."""
    if is_distributed():
        dist.all_reduce(x, op=dist.ReduceOp.SUM)
    return x


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True on every rank as soon as it is true on one: how ranks agree to stop."""
    if not is_distributed():
        return flag
    x = torch.tensor([1 if flag else 0], device=device)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return bool(x.item())


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Rank 0's values on every rank, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def gather_rows(x: Tensor) -> Tensor:
    """Every rank's (n, ...) below each other in rank order, on every rank, without gradient; n is the same on all.

    What a loss puts into a memory goes through this, so that the memory is the same on every rank.
    """
    if not is_distributed():
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def merge_ranks(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """Every rank's entries in one dict, on every rank."""
    return {key: value for part in gather_objects(mapping) for key, value in part.items()}


def gather_objects(value: Any) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank."""
    if not is_distributed():
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box
