"""Layers that round as an int8 file does, so that a network learns with the rounding it will be used with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from densekd.rewrite.fold import fold_norms

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
# Weights take 7 bits: processors with AVX2 and no VNNI add pairs of products in 16 bits, which 8 bits overflow.
STEPS = 64
PACE = 0.05  # by how much a range moves towards that of a new batch: about the last twenty count
SMALLEST = 1e-4  # of a tensor's largest weight: a channel below has no finer steps, so that its bias fits 32 bits
TINY = 1e-30  # in place of a range or weight of 0


@torch.library.custom_op("densekd::rounded", mutates_args=())
def rounded(x: Tensor, scale: float, zero: int) -> Tensor:
    """`x` at the nearest of uint8's 256 values, as floats: what ONNX's QuantizeLinear and DequantizeLinear do."""
    return plain_rounded(x, scale, zero)


@rounded.register_fake
def _(x: Tensor, scale: float, zero: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("densekd::stored", mutates_args=())
def stored(values: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Integers as the floats that they stand for, with a scale a channel: ONNX's DequantizeLinear."""
    return plain_stored(values, scale, axis)


@stored.register_fake
def _(values: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty_like(values, dtype=torch.float32)


def plain_rounded(x: Tensor, scale: float, zero: int) -> Tensor:
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale


def plain_stored(values: Tensor, scale: Tensor, axis: int) -> Tensor:
    return values.float() * along(scale, axis, values.ndim)


class RoundedMap(nn.Module):
    """A map rounded to the 256 values of uint8 over the range that training has shown.

    In training the range follows a running mean of the extremes of each batch, 0 included. Gradients pass where the
    map is inside of its range and stop elsewhere (the straight-through estimator, as torch's ``fake_quantize`` has it).
    Before the first batch of training the map stays as it is.

    Attributes:
        range: the lowest and the highest value; before the first batch the lowest is above the highest.
        fixed: rounds with constants in a traced graph, see `constants`.
    """

    range: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("range", torch.tensor([1.0, -1.0]))
        self.fixed: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed is not None:
            return self.fixed(x)
        if self.training:
            self._follow(x.detach())
        elif not self.seen:
            return x
        scale, zero = self.grid()
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255).to(x.dtype)

    @property
    def seen(self) -> bool:
        return bool(self.range[0] <= self.range[1])

    def _follow(self, x: Tensor) -> None:
        low, high = torch.aminmax(x.float())
        found = torch.stack([low.clamp(max=0), high.clamp(min=0)])
        seen = self.range[0] <= self.range[1]
        self.range.copy_(torch.where(seen, self.range.lerp(found, PACE), found))

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) of uint8, of one element each."""
        low, high = self.range.unbind()
        scale = ((high - low) / 255).clamp(min=TINY)
        return scale, (-low / scale).round().to(torch.int32)


class RoundedWeight(nn.Module):
    """A weight rounded to int8 of `STEPS` steps each side of 0, with a scale for each output channel.

    Args:
        axis: of the output channels.

    Attributes:
        fixed: gives the weight from integers in a traced graph, see `constants`.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.fixed: Callable[[], Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if self.fixed is not None:
            return self.fixed()
        scale = self.scale(weight)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight.float(), scale, zero, self.axis, -STEPS, STEPS
        ).to(weight.dtype)

    def scale(self, weight: Tensor) -> Tensor:
        """(output channels,) float32."""
        size = weight.detach().float().abs()
        largest = size.amax([i for i in range(weight.ndim) if i != self.axis])
        return torch.maximum(largest, (size.amax() * SMALLEST).clamp(min=TINY)) / STEPS


class RoundedBias(nn.Module):
    """A bias as it is; in a traced graph in the 32 bits in which integer runtimes add it.

    Attributes:
        fixed: gives the bias from integers in a traced graph, see `constants`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fixed: Callable[[], Tensor] | None = None

    def forward(self, bias: Tensor) -> Tensor:
        return bias if self.fixed is None else self.fixed()


def to_int8(network: nn.Module, images: Tensor) -> int:
    """Make convolutions and linear layers round input, weight and output, as `densekd export --int8` quantises them.

    Batch norms are folded into the convolutions before them first, as in an exported file; norms that cannot be folded
    keep their statistics from then on (scale and shift still learn). What normalises, resizes, adds and decides stays
    in float, and so do the products of attention. Paths of modules stay; keys of the state change.

    Source: Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference* (2018). Differs from it: norms are folded once and do not go on in training.

    Args:
        network: with the weights that it begins with; it is changed.
        images: any that it takes, to follow the flow of its tensors.

    Returns:
        How many layers round.
    """
    fold_norms(network, images)
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            norm.register_forward_pre_hook(_stay_as_trained)
    layers = list(roundable(network))
    for layer in layers:
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        parametrize.register_parametrization(layer, "weight", RoundedWeight(axis))
        if layer.bias is not None:
            parametrize.register_parametrization(layer, "bias", RoundedBias())
        layer.int8_input, layer.int8_output = RoundedMap(), RoundedMap()
        layer.register_forward_pre_hook(_round_input)
        layer.register_forward_hook(_round_output)
        layer.train(layer.training)  # the new parts too
    return len(layers)


def roundable(network: nn.Module) -> Iterator[Any]:
    """The layers that can round: torch's attention reads the weights of its own and never calls the layers."""
    uncalled = {
        inner
        for module in network.modules()
        if isinstance(module, nn.MultiheadAttention)
        for inner in module.modules()
    }
    for module in network.modules():
        own = isinstance(module, LAYERS) and module not in uncalled
        if own and not parametrize.is_parametrized(module):
            yield module


def is_int8(network: nn.Module) -> bool:
    return any(isinstance(module, RoundedMap) for module in network.modules())


def unseen_layers(network: nn.Module) -> list[str]:
    """Paths of the maps whose range is unknown: no batch of training has been there."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, RoundedMap) and not module.seen
    ]


@contextmanager
def constants(network: nn.Module, *, plain: bool = False) -> Iterator[None]:
    """Inside, weights and biases are integers and ranges are constants, as a traced graph should hold them.

    Args:
        plain: round by torch's own operations, for programs that run without densekd; else by `rounded` and `stored`,
            which a format can put its own in place of.
    """
    changed: list[Any] = []
    try:
        for layer in network.modules():
            if not isinstance(getattr(layer, "int8_input", None), RoundedMap):
                continue
            changed += fix(layer, plain)
        yield
    finally:
        for part in changed:
            part.fixed = None


def fix(layer: Any, plain: bool) -> list[Any]:
    """Make what a layer rounds with constant; returns the parts of which it was made so."""
    to_grid, from_integers = (plain_rounded, plain_stored) if plain else (rounded, stored)
    for part in (layer.int8_input, layer.int8_output):
        step, zero = part.grid()
        part.fixed = partial(to_grid, scale=float(step), zero=int(zero))
    (rounding,) = layer.parametrizations["weight"]
    weight = layer.parametrizations["weight"].original.detach()
    scale = rounding.scale(weight)
    values = to_integers(weight, scale, rounding.axis, STEPS).to(torch.int8)
    rounding.fixed = partial(from_integers, values, scale, rounding.axis)
    parts = [layer.int8_input, layer.int8_output, rounding]
    if layer.bias is not None:
        (adding,) = layer.parametrizations["bias"]
        bias = layer.parametrizations["bias"].original.detach()
        # A grouped transposed convolution has scales for the channels of one group.
        scale = scale.repeat(len(bias) // len(scale)) * layer.int8_input.grid()[0]
        values = to_integers(bias, scale, 0, 2**31 - 128).to(torch.int32)
        adding.fixed = partial(from_integers, values, scale, 0)
        parts.append(adding)
    return parts


def to_integers(values: Tensor, scale: Tensor, axis: int, limit: int) -> Tensor:
    return (values.double() / along(scale, axis, values.ndim)).round().clamp(-limit, limit)


def along(scale: Tensor, axis: int, dimensions: int) -> Tensor:
    """(C,) -> a shape that multiplies the channels of `axis`."""
    return scale.view([-1 if i == axis else 1 for i in range(dimensions)])


def _round_input(layer: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.int8_input(given[0]), *given[1:])


def _round_output(layer: Any, given: tuple[Any, ...], output: Tensor) -> Tensor:
    return layer.int8_output(output)


def _stay_as_trained(norm: nn.Module, given: tuple[Any, ...]) -> None:
    norm.eval()
