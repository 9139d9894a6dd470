"""The student while it is distilled: its network, and the projections that its terms compare it through."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from densekd.models.taps import Taps
from densekd.types import DenseOutput


class Student(nn.Module):
    """A tapped network with learned adapters; what DDP wraps, so that adapters stay equal on all ranks.

    The adapters are trained with the student and left behind when it is saved for use.

    Args:
        taps: the tapped network.
        adapters: name -> (name of a tapped feature, what maps it). The result joins ``features`` under the adapter's
            name; of a feature that comes in levels, each level goes through the same adapter.
    """

    def __init__(
        self, taps: Taps, adapters: Mapping[str, tuple[str, nn.Module]] | None = None
    ) -> None:
        super().__init__()
        self.taps = taps
        adapters = adapters or {}
        self.sources = {name: source for name, (source, _) in adapters.items()}
        self.adapters = nn.ModuleDict({name: module for name, (_, module) in adapters.items()})

    @property
    def model(self) -> nn.Module:
        """The bare network."""
        return self.taps.model

    def forward(self, images: Tensor) -> DenseOutput:
        """(N, C, H, W) RGB in [0, 1] -> prediction, tapped and adapted features."""
        output: DenseOutput = self.taps(images)
        for name, adapter in self.adapters.items():
            maps = output.features[self.sources[name]]
            adapted = [adapter(x) for x in maps] if isinstance(maps, list) else adapter(maps)
            output.features[name] = adapted
        return output
