"""Parameters and multiply-accumulate operations of a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(network: nn.Module) -> int:
    """Number of learned values."""
    return sum(p.numel() for p in network.parameters())


@torch.no_grad()
def count_macs(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one (1, channels, *size) image in eval mode.

    PyTorch's flop counter counts convolutions, matrix products and attention at two flops each; the norms,
    activations and resizing that it leaves out are small beside them.
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channels, *size, device=device))
    network.train(was_training)
    return counter.get_total_flops() // 2
