"""The only calls into torch.distributed's primitives. Every one is a no-op in a single process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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


_depth = 0  # of `over_ranks` blocks that are entered


@contextmanager
def over_ranks(enabled: bool = True) -> Iterator[None]:
    """Within it the means of losses run over the batches of all ranks, and not over this rank's alone.

    Losses then make collective calls, as many on every rank: each must call the same losses in the same order, also
    where nothing counts. Their values are those of the whole batch, equal on all ranks, and their gradients are such
    that the mean over ranks, which DistributedDataParallel takes, is the whole batch's. `Distiller` enters it where
    gradients are recorded; a loop that calls losses by itself may.

    Args:
        enabled: False leaves things as they are.

    Example:
        >>> from densekd.losses import cross_entropy
        >>> logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
        >>> with over_ranks():  # a single process: no call, and the same number
        ...     value = cross_entropy(logits, labels)
    """
    global _depth
    _depth += enabled
    try:
        yield
    finally:
        _depth -= enabled


def is_joined() -> bool:
    """Whether losses take their means over several ranks now."""
    return _depth > 0 and world_size() > 1


def mean_over_ranks(total: Tensor, count: Tensor | float) -> Tensor:
    """total / count, each summed over all ranks within `over_ranks`; where nothing counts, 0 with a graph.

    One call of all_reduce. A rank on which nothing counts gives zeros, with a graph, and must not stay away.

    Args:
        total: a scalar with a graph.
        count: what `total` is the sum of: a number, or a scalar without a graph, at least 0.
    """
    return means_over_ranks([total], count)[0]


def means_over_ranks(totals: Sequence[Tensor], count: Tensor | float) -> list[Tensor]:
    """`mean_over_ranks` of several totals that have one count, in one call."""
    if not is_joined():
        divisor = _not_zero(count)
        return [total / divisor for total in totals]
    counted = torch.as_tensor(count, dtype=torch.float64, device=totals[0].device)
    packed = torch.stack([*(total.detach().double() for total in totals), counted])
    everyone = all_reduce_sum(packed)
    divisor = everyone[-1].where(everyone[-1] > 0, everyone.new_ones(()))
    means = []
    for total, whole in zip(totals, everyone[:-1], strict=True):
        share = total * (world_size() / divisor).to(total.dtype)
        means.append(_WithValue.apply(share, (whole / divisor).to(total.dtype)))
    return means


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of equal-sized tensors over all ranks within `over_ranks`; elsewhere x itself.

    For losses that are functions of sums: when every rank computes the same function of it, the mean over ranks of
    the gradients is the whole batch's. So nothing in that function may be a rank's own; centre by a mean without a
    gradient (`x.detach()`), whose part in a sum of squares is 0 over all ranks but not on each.
    """
    if not is_joined():
        return x
    return _WithValue.apply(x * world_size(), all_reduce_sum(x.detach().clone()))


def count_over_ranks(count: Tensor) -> Tensor:
    """Counts summed over all ranks within `over_ranks`; elsewhere themselves."""
    return all_reduce_sum(count.clone()) if is_joined() else count


def max_over_ranks(x: Tensor) -> Tensor:
    """The largest over all ranks within `over_ranks`, without gradient; elsewhere x itself."""
    if not is_joined():
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


_DIGIT = 11  # bits that `smallest_over_ranks` settles in one call, of 2 ** 11 counts


def smallest_over_ranks(values: Tensor, k: Tensor | int) -> Tensor:
    """The k-th smallest (from 1) of the values of all ranks, exactly, without gathering them; no gradient.

    It counts values by their leading bits, then those that share these by the next ones: 3 calls of all_reduce for
    float32, 6 for float64, of 16 KiB each.

    Args:
        values: (M,) float32 or float64 of 0 or more, infinity where one does not count; M may differ by rank.
        k: at least 1.
    """
    bits = values.detach().contiguous()
    wide = bits.dtype == torch.float64
    # The bits of floats of one sign are in the order of their values.
    bits = bits.view(torch.int64 if wide else torch.int32).long()
    left = torch.as_tensor(k, device=bits.device)
    prefix = torch.zeros((), dtype=torch.long, device=bits.device)
    for shift in range(55 if wide else 22, -1, -_DIGIT):
        leading = bits >> shift
        digit, member = leading & (2**_DIGIT - 1), leading >> _DIGIT == prefix
        counts = bits.new_zeros(2**_DIGIT).scatter_add_(0, digit, member.long())
        reached = all_reduce_sum(counts).cumsum(0)
        chosen = (reached < left).sum().clamp(max=2**_DIGIT - 1)
        left = left - (reached[chosen] - counts[chosen])
        prefix = (prefix << _DIGIT) + chosen
    return prefix.view(torch.float64) if wide else prefix.int().view(torch.float32)


class _WithValue(torch.autograd.Function):
    """`value`, with the gradient of x."""

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore[bad-override]
        return grad, None


def _not_zero(count: Tensor | float) -> Tensor | float:
    if not isinstance(count, Tensor):
        return count if count > 0 else 1
    if count.is_floating_point():
        return count.where(count > 0, count.new_ones(()))
    return count.clamp(min=1)


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
