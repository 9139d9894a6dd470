"""Batch norms of a frozen network, folded into the convolutions before them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from densekd.layers.abn import ABN

TOLERANCE = 1e-3  # how much folding may change a tensor, relative to its largest value
ACTIVATIONS = {"leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "identity": nn.Identity}


@torch.no_grad()
def fold_norms(model: nn.Module, images: Tensor) -> int:
    """Fold norms in eval mode into the convolutions that feed them; what the network computes stays, up to rounding.

    Pairs are found by data flow in one real forward: a norm whose input is a convolution's output, where nothing else
    reads that output: no operation, no tap (a hook that reads a module's output) and not the caller. So it works on
    any network that runs, traceable or not. `nn.BatchNorm2d`, `ABN`, timm's ``BatchNormAct2d`` and torchvision's
    ``FrozenBatchNorm2d`` are folded, each into an `nn.Conv2d` or `nn.ConvTranspose2d`. In the norm's place remains its
    activation, or an identity, under the same path and with the same hooks, so that a tap on the norm gives what it
    gave.

    Each pair is checked on the forward's own tensors, and all of them on the network's outputs; what differs by
    more than `TOLERANCE` of a tensor's largest value is put back.

    Use it for a network that no longer trains: its parameters and keys change.

    Args:
        model: any network, or `Taps` around it; called as ``model(images)``. Its mode is restored.
        images: an input that the network takes, of any size.

    Returns:
        How many norms were folded.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        flow = Flow()
        reference = [x.clone() for x in tensors(flow.watch(model, images))]
        undo = []
        for conv, norm in flow.pairs():
            before = conv.weight, conv.bias
            conv.weight, conv.bias = folded(conv, norm)
            if close(activation(norm)(conv(flow.inputs[conv])), flow.outputs[norm]):
                undo.append((conv, before, norm, replace_module(model, norm, activation(norm))))
            else:
                conv.weight, conv.bias = before
        count = len(undo)
        if undo and not same(list(tensors(model(images))), reference):
            for conv, before, norm, now in undo:
                conv.weight, conv.bias = before
                replace_module(model, now, norm)
            count = 0
        return count
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass
class Flow:
    """The flow of tensors through one forward; all of them are kept, so that no id is used twice."""

    made: dict[int, nn.Module] = field(default_factory=dict)  # id of a tensor -> its convolution
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)  # the inputs of convolutions
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)  # the outputs of norms
    fed: list[tuple[nn.Module, int]] = field(default_factory=list)  # norm, id of its input
    runs: Counter[nn.Module] = field(default_factory=Counter)
    reads: Counter[int] = field(default_factory=Counter)  # operations that take the tensor
    seen: set[int] = field(default_factory=set)  # by hooks and by the caller
    kept: list[Tensor] = field(default_factory=list)

    def watch(self, model: nn.Module, images: Tensor) -> Any:
        hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        handles = []
        for module in model.modules():
            if type(module) in norm_types():
                handles.append(module.register_forward_hook(self._norm))
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                handles.append(module.register_forward_hook(self._conv))
        # After them, since a convolution that is tapped itself has been seen.
        handles += [m.register_forward_hook(self._hooked) for m in hooked]
        try:
            with Reads(self.reads):
                output = model(images)
        finally:
            for handle in handles:
                handle.remove()
        self.seen.update(id(x) for x in tensors(output))
        return output

    def _hooked(self, module: nn.Module, given: Any, output: Any) -> None:
        # Hooks from before: a pre-hook reads the input, a forward hook (a tap) the output.
        self.seen.update(id(x) for x in tensors(output))
        if module._forward_pre_hooks:
            self.seen.update(id(x) for x in tensors(given))

    def _conv(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.runs[module] += 1
        self.made[id(output)] = module
        # Tensors that are gone may have had the same id.
        self.reads[id(output)] = 0
        self.seen.discard(id(output))
        self.inputs[module] = given[0]
        self.kept.append(output)

    def _norm(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self.runs[module] += 1
        self.fed.append((module, id(given[0])))
        # A copy: what follows may work in place.
        self.outputs[module] = output.clone()
        self.kept.append(given[0])

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """(convolution, norm) of which each ran once, the latter alone on all of what the former gave."""
        for norm, tensor in self.fed:
            conv = self.made.get(tensor)
            if conv is None or self.runs[conv] != 1 or self.runs[norm] != 1:
                continue
            if self.reads[tensor] == 1 and tensor not in self.seen and foldable(conv, norm):
                yield conv, norm


class Reads(TorchDispatchMode):
    """Counts how many operations take each tensor."""

    def __init__(self, counter: Counter[int]) -> None:
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.counter.update(id(x) for x in tensors((args, kwargs)))
        return func(*args, **kwargs)


def norm_types() -> set[type]:
    known: set[type] = {nn.BatchNorm2d, ABN}
    # A library that is not loaded has no norm in the network, and its import takes seconds.
    if "timm.layers" in sys.modules:
        known.add(sys.modules["timm.layers"].BatchNormAct2d)
    if "torchvision.ops" in sys.modules:
        known.add(sys.modules["torchvision.ops"].FrozenBatchNorm2d)
    return known


def foldable(conv: Any, norm: Any) -> bool:
    """Whether the norm works on stored statistics, and the convolution's weight is a plain one in full precision."""
    return (
        norm.running_var is not None
        and not parametrize.is_parametrized(conv)
        and isinstance(conv.weight, nn.Parameter)
        and conv.weight.dtype in (torch.float32, torch.float64)
        and getattr(norm, "activation", "identity") in ACTIVATIONS
    )


def folded(conv: Any, norm: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """The convolution's weight and bias that do the norm's work too, computed in float64."""
    weight = conv.weight.double()
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    if isinstance(norm, ABN):
        scale = scale.abs() + norm.eps
    scale = scale / (var + norm.eps).sqrt()
    bias = torch.zeros_like(mean) if conv.bias is None else conv.bias.double()
    bias = (bias - mean) * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    if isinstance(conv, nn.ConvTranspose2d):  # (in, out / groups, kh, kw): the inputs are grouped
        parts = weight.unflatten(0, (conv.groups, -1))
        weight = (parts * scale.view(conv.groups, 1, -1, 1, 1)).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, 1, 1)
    return tuple(  # pyrefly: ignore[bad-return]
        nn.Parameter(_like(x, conv.weight), requires_grad=conv.weight.requires_grad)
        for x in (weight, bias)
    )


def _like(x: Tensor, weight: Tensor) -> Tensor:
    """`x` in the weight's precision; a tensor with the weight's shape also gets its memory format."""
    return torch.empty_like(weight).copy_(x) if x.ndim == 4 else x.to(weight.dtype)


def activation(norm: Any) -> nn.Module:
    """What is left of a norm that is folded."""
    if isinstance(norm, ABN):
        if norm.activation == "leaky_relu":
            return nn.LeakyReLU(norm.slope)
        return ACTIVATIONS[norm.activation]()
    if hasattr(norm, "act"):
        return DropAct(norm.drop, norm.act)
    return nn.Identity()


class DropAct(nn.Module):
    """The rest of timm's ``BatchNormAct2d``, its modules under their own names."""

    def __init__(self, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.drop = drop
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` wherever `old` stands, with its mode and hooks; returns `new`."""
    new.train(old.training)
    for name in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
        setattr(new, name, getattr(old, name))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)
    return new


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, dataclasses and plain objects that hold some."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors([getattr(value, f.name) for f in fields(value)])


def same(now: list[Tensor], before: list[Tensor]) -> bool:
    return len(now) == len(before) and all(map(close, now, before))


def close(now: Tensor, before: Tensor) -> bool:
    """Equal, but for `TOLERANCE` of the largest value."""
    if now.shape != before.shape or not now.is_floating_point():
        return now.shape == before.shape and bool((now == before).all())
    largest = before.abs().amax() if before.numel() else 0.0
    return bool(((now - before).abs() <= TOLERANCE * largest).all())
