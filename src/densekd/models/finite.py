"""Whether weights are numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from densekd.errors import WeightsError

# Buffers that are statistics; others may hold infinities on purpose, as a mask of attention does.
STATISTICS = ("running_mean", "running_var")


def not_finite(network: nn.Module) -> list[str]:
    """Names of the parameters and statistics with NaN or infinity, and of other buffers with NaN."""
    return [name for name, value, masks in _tensors(network) if not _usable(value, masks)]


def infinite_weights(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Names of the `given` tensors with NaN or infinity, other than those that have some in `expected` already."""
    wrong = [name for name, value in given.items() if not _usable(value)]
    return [name for name in wrong if name not in expected or _usable(expected[name])]


def check_finite(network: nn.Module, name: str) -> None:
    """Raise WeightsError where a network's weights are not finite.

    Args:
        name: of the network, for the message.
    """
    wrong = not_finite(network)
    if wrong:
        total = len(network.state_dict())
        raise WeightsError(
            f"{name}: {said(wrong, total)}. Such weights predict nothing; take others"
        )


def said(wrong: list[str], total: int) -> str:
    """``3 of 74 tensors hold NaN or infinity (the first is conv.weight)``."""
    return f"{len(wrong)} of {total} tensors hold NaN or infinity (the first is {wrong[0]})"


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    for name, value in network.named_parameters():
        yield name, value.detach(), False
    for name, value in network.named_buffers():
        yield name, value, name.rpartition(".")[2] not in STATISTICS


def _usable(value: Tensor, masks: bool = False) -> bool:
    if not (value.is_floating_point() or value.is_complex()) or value.is_meta:
        return True
    return not bool(value.isnan().any()) if masks else bool(value.isfinite().all())
