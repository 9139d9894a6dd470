"""Norm and activation computed again in backward, from the map that the norm keeps anyway."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from densekd.ops.recording import recording

# Each value depends on the same place of the first argument alone, and on no random draw.
ACTIVATIONS: frozenset[Any] = frozenset(
    {
        F.relu, F.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.silu,
        F.hardswish, F.gelu, F.mish, torch.relu, torch.relu_, torch.prelu, Tensor.relu, Tensor.relu_,
    }
)  # fmt: skip


class Recipe:
    """How to make a tensor again: ``function(*given)``.

    Args:
        function: computes the tensor from tensors that are kept anyway, and from other values.
        given: the function's arguments.
        device: the type of the tensors' device.
        before: another recipe, whose result is the function's first argument, before `given`.

    Attributes:
        places: how many saved places hold this recipe.
        left: how many of them have not yet taken the value in this backward pass; it is kept until the last one has.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        given: Sequence[Any],
        device: str,
        before: Recipe | None = None,
    ) -> None:
        self.function = function
        self.before = before
        self.given = [_Kept(v) if isinstance(v, Tensor) else v for v in given]
        self.autocast = (
            device,
            torch.get_autocast_dtype(device),
            torch.is_autocast_enabled(device),
        )
        self.value: Tensor | None = None
        self.places = self.left = 0

    def take(self) -> Tensor:
        """The tensor, for one of the places that hold this recipe."""
        value = self.make()
        self.left -= 1
        if self.left <= 0:
            self.value, self.left = None, self.places
        return value

    def make(self) -> Tensor:
        if self.value is not None:
            return self.value
        given = [v.get() if isinstance(v, _Kept) else v for v in self.given]
        if self.before is not None:
            given.insert(0, self.before.make())
        device, dtype, enabled = self.autocast
        with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=enabled):
            value = self.function(*given)
        self.value = value if self.left > 0 else None
        return value


class _Kept:
    """A tensor as it was: autograd's own check for changes in place is off where saving is hooked."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # without its graph, which would hold this object in turn
        self.version = tensor._version

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"{tuple(self.tensor.shape)} is at version {self.tensor._version}; expected version {self.version}"
            )
        return self.tensor


class _Saved:
    """The object that autograd holds in place of a saved tensor."""

    def __init__(self, content: _Kept | Recipe) -> None:
        self.content = content

    def hold(self, recipe: Recipe) -> None:
        self.content = recipe
        recipe.places += 1
        recipe.left += 1

    def get(self) -> Tensor:
        return self.content.get() if isinstance(self.content, _Kept) else self.content.take()


class _Known:
    """A tensor that has a recipe, while it lives and is unchanged."""

    def __init__(self, tensor: Tensor, recipe: Recipe) -> None:
        self.tensor = weakref.ref(tensor)
        self.version = tensor._version
        self.recipe = recipe

    def fits(self, other: Tensor) -> bool:
        tensor = self.tensor()
        # While the tensor lives, its address belongs to no other storage.
        return (
            tensor is not None
            and tensor._version == self.version
            and tensor.data_ptr() == other.data_ptr()
            and tensor.shape == other.shape
            and tensor.stride() == other.stride()
            and tensor.dtype == other.dtype
        )


class _Recorder(TorchFunctionMode):
    """Sees every call of a norm or an activation, and decides what autograd saves."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, _Known] = {}  # by address
        self.fresh: list[_Saved] | None = None  # saved during an activation's own call

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            result = func(*args, **kwargs)
            if self.find(args[0]) is None:
                self.note_norm(result, *args, **kwargs)
            return result
        if func in ACTIVATIONS and args and (recipe := self.find(args[0])) is not None:
            return self.activate(recipe, func, args, kwargs)
        return func(*args, **kwargs)

    def note_norm(
        self,
        result: Tensor,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        if (
            training
        ):  # the batch's statistics are computed again, because the running ones have changed since
            mean = var = None
        self.note(result, F.batch_norm, [x, mean, var, weight, bias, training, 0.0, eps])

    def activate(self, recipe: Recipe, func: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
        self.fresh = []
        try:
            result = func(*args, **kwargs)
        finally:
            fresh, self.fresh = self.fresh, None
        in_place = result is args[0]
        again = self.note(result, _Activation(func, kwargs, in_place), args[1:], recipe)
        for saved in fresh:
            if again is not None and isinstance(saved.content, _Kept):
                kept = saved.content.tensor
                if kept.data_ptr() == result.data_ptr() and kept.shape == result.shape:
                    saved.hold(again)
                elif in_place and kept.shape == result.shape:
                    saved.hold(recipe)  # a copy of the input (silu_, hardswish_, mish_)
        return result

    def note(
        self,
        result: Tensor,
        function: Callable[..., Tensor],
        given: Sequence[Any],
        before: Recipe | None = None,
    ) -> Recipe | None:
        """Remember how `result` was made, if autograd may save it."""
        if not result.requires_grad or not result.data_ptr():  # meta tensors have no address
            return None
        recipe = Recipe(function, given, result.device.type, before)
        self.known[result.data_ptr()] = _Known(result, recipe)
        return recipe

    def find(self, tensor: Any) -> Recipe | None:
        if not self.known or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            return None
        known = self.known.get(tensor.data_ptr())
        return known.recipe if known is not None and known.fits(tensor) else None

    def pack(self, tensor: Tensor) -> _Saved:
        recipe = self.find(tensor)
        saved = _Saved(_Kept(tensor))
        if recipe is not None:
            saved.hold(recipe)
        elif self.fresh is not None:
            self.fresh.append(saved)
        return saved


class _Activation:
    """An activation with its keyword arguments. In place it works on a copy: backward may still need its input."""

    def __init__(
        self, function: Callable[..., Tensor], kwargs: dict[str, Any], in_place: bool
    ) -> None:
        self.function, self.kwargs, self.in_place = function, kwargs, in_place

    def __call__(self, x: Tensor, *args: Any) -> Tensor:
        return self.function(x.clone() if self.in_place else x, *args, **self.kwargs)


class _Entered(threading.local):
    def __init__(self) -> None:
        self.modules: list[tuple[nn.Module, AbstractContextManager | None]] = []


_entered = _Entered()


@contextmanager
def recompute_norms() -> Iterator[None]:
    """Within it, the results of batch norms and of the activations after them are computed again in backward, not kept.

    For convolution, norm, activation and convolution autograd keeps two or three maps: the norm's input, and what the
    activation and the next convolution save. Here it keeps only the norm's input, from which backward computes norm and
    activation again with the same kernels. On the CPU values and gradients are equal to those of the plain way bit for
    bit, for weights of any sign. The calls are seen as they happen, so this works for any network, with modules or
    functions, in place or not, also where many norms share one ReLU.

    - A map that something else holds (a tap, a skip connection that is summed) is not freed; it is only not kept twice.
    - A sum of branches and its ReLU are kept: only an activation that follows a norm directly is computed again.
    - Second derivatives work. Under `torch.compile`, which decides by itself what to keep, this does nothing.

    Call the network inside, backward outside.
    """
    if recording.recorder is not None or not torch.is_grad_enabled() or _traced():
        yield
        return
    recorder = _Recorder()
    recording.recorder = recorder
    try:
        with torch.autograd.graph.saved_tensors_hooks(recorder.pack, _Saved.get), recorder:
            yield
    finally:
        recording.recorder = None


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def to_inplace(model: nn.Module) -> nn.Module:
    """Make a network train with less memory: every forward of it runs under `recompute_norms`.

    No layer is replaced: keys, values, hooks and taps stay, in training and evaluation, and so does the function. A
    copy (`copy.deepcopy`) keeps the property. Nothing is gained in evaluation, under ``no_grad`` or under
    `torch.compile`.

    Args:
        model: any network. Calls of the network itself count, not calls of its parts.

    Returns:
        The network itself.

    Example:
        >>> network = to_inplace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
        >>> network(torch.rand(2, 3, 8, 8)).sum().backward()
    """
    if _before not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_before)
        model.register_forward_hook(_after, always_call=True)
    return model


def _before(module: nn.Module, args: Any) -> None:
    if not _traced():
        enter(module, recompute_norms())


def _after(module: nn.Module, args: Any, output: Any) -> None:
    if not _traced():
        leave(module, args, output)


# A context that begins in one hook of a module and ends in another. Hooks are plain functions, so that copies of the
# module and its pickles have them too.


def enter(module: nn.Module, context: AbstractContextManager | None) -> None:
    """Runs in a forward pre-hook."""
    if any(inside is module for inside, _ in _entered.modules):
        while _leave_last() is not module:  # Ctrl-C ended a forward without its last hooks
            pass
    if context is not None:
        context.__enter__()
    _entered.modules.append((module, context))


def leave(module: nn.Module, args: Any, output: Any) -> None:
    """Runs in a forward hook that is always called; after an error in an earlier pre-hook there is nothing to leave."""
    if _entered.modules and _entered.modules[-1][0] is module:
        _leave_last()


def _leave_last() -> nn.Module:
    module, context = _entered.modules.pop()
    if context is not None:
        context.__exit__(None, None, None)
    return module
