"""The student while it is distilled: its network, and the terms that it is compared through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from densekd.distill.term import Term
from densekd.models.taps import Taps
from densekd.types import DenseOutput


class Student(nn.Module):
    """A tapped network with the terms' adapters and states: all that trains with it, and what DDP wraps.

    The terms are called outside of this forward. DDP keeps their parameters in step all the same: it averages the
    gradient of each parameter of the wrapped module, wherever it was used, as long as every backward pass reaches it;
    and it gives every rank rank 0's buffers at the start of each forward.

    Args:
        taps: the tapped network.
        terms: trained with the network and left behind when it is saved for use.
    """

    def __init__(self, taps: Taps, terms: Sequence[Term] = ()) -> None:
        super().__init__()
        self.taps = taps
        self.terms = nn.ModuleList(terms)

    @property
    def model(self) -> nn.Module:
        """The bare network."""
        return self.taps.model

    def forward(self, images: Tensor) -> DenseOutput:
        """(N, C, H, W) RGB in [0, 1] -> prediction and tapped features."""
        return self.taps(images)

    def terms_state(self) -> dict[str, dict[str, Any]]:
        """Name of a term -> its `state_dict`: adapter, and parameters and buffers of its loss."""
        return {term.name: term.state_dict() for term in self.each_term()}

    def load_terms_state(self, state: dict[str, dict[str, Any]]) -> None:
        """The inverse of `terms_state`.

        Raises:
            ValueError: a term is missing or has another state.
        """
        for term in self.each_term():
            try:
                term.load_state_dict(state[term.name])
            except (KeyError, RuntimeError) as error:
                raise ValueError(
                    f"the state that was saved does not fit the term {term.name}: {error}; it must be as it was when "
                    "it was saved"
                ) from error

    def each_term(self) -> Iterator[Term]:
        """The terms that train with the network."""
        for term in self.terms:
            assert isinstance(term, Term)
            yield term
