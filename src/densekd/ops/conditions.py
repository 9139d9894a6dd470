"""Conditions on the values of tensors, read when the host waits for the device anyway.

A condition on values is known on the device alone, so to raise an error at once is to wait for all that was launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """A condition whose reader raises the error.

    Attributes:
        holds: a bool scalar, on its device.
        message: says what is wrong; asked only where `holds` is False.
    """

    holds: Tensor
    message: Callable[[], str]


_collected: ContextVar[list[Condition] | None] = ContextVar("conditions", default=None)


@contextmanager
def deferred() -> Iterator[list[Condition]]:
    """Within it `require` raises nothing and adds to the list that this gives, whose owner reads it.

    Example:
        >>> import torch
        >>> with deferred() as conditions:
        ...     require(torch.tensor(1.0) > 2, lambda: "too small")
        >>> [condition.message() for condition in conditions if not condition.holds]
        ['too small']
    """
    conditions: list[Condition] = []
    token = _collected.set(conditions)
    try:
        yield conditions
    finally:
        _collected.reset(token)


def require(holds: Tensor, message: Callable[[], str]) -> None:
    """Raise ValueError with the message unless the bool scalar is True; within `deferred` whoever entered it does."""
    conditions = _collected.get()
    if conditions is not None:
        conditions.append(Condition(holds, message))
    elif not bool(holds):
        raise ValueError(message())
