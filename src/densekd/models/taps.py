"""Taps: read any tensor out of any network by its module path, without changing the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import UserError
from densekd.models.label_space import LabelSpace
from densekd.models.layout import Grid, as_map, patch_size
from densekd.models.outputs import describe, example, find_prediction, follow, holds
from densekd.ops.names import nearest
from densekd.ops.resize import resize_map
from densekd.types import DenseOutput, InputSpec, Maps


class _Enough(Exception):
    """Ends a forward whose prediction is not needed, once every tapped module has run."""


@dataclass
class Tally:
    """How often the recorders of one network fired in this forward, and at which count it may end."""

    fired: int = 0
    last: int | None = None


class Recorder:
    """A forward hook that remembers what its module returned, while it is switched on.

    An object, not a closure: a deep copy of the network (EMA) then gets a recorder of its own instead of writing into
    this one. It is off outside of `Taps.forward`, so that a bare call of the network keeps no graph alive.
    """

    def __init__(self, tap: str, where: str, tally: Tally | None = None) -> None:
        self.tap = tap
        self.where = where
        self.on = False
        self.value: Any = None
        self.turned: list[tuple[int, ...]] = []  # shapes before `as_map`, where it changed them
        self.tally = tally
        self.fired = 0  # the tally's count when it fired last
        self.runs = 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.on:
            return
        self.value = output
        if self.tally is not None and not torch.compiler.is_compiling():
            self.tally.fired += 1
            self.fired = self.tally.fired
            self.runs += 1
            if self.tally.fired == self.tally.last:
                raise _Enough


class Taps(nn.Module):
    """Wraps a network, ours or foreign, so that it takes RGB images in [0, 1] and returns `DenseOutput`.

    Args:
        model: any network.
        taps: name -> module path (``"backbone.layer4"``). Where that module returns a container, a path into it follows
            a colon: ``"backbone:out"``, ``"backbone.fpn:0"``, ``"head:levels.1"`` (keys, positions or attributes).
            ``"fpn:*"`` (``"encoder:maps.*"``) gives all maps of the container as a list, in its order: the levels of
            a pyramid.
            A module that runs more than once in a forward gives its last result. Tokens (N, L, C) and channels-last
            maps (N, h, w, C) become maps (N, C, h, w); see `densekd.models.layout.as_map`.
        input_spec: the input that the network expects; None takes the network's own ``input_spec`` where it has one,
            and else passes the images on as they are.
        prediction: where the prediction is, for outputs not known to `densekd.models.outputs.find_prediction`: a path
            into the network's raw output (keys, attributes or indices: ``"logits"``, ``"1"``), or a module as in
            `taps` (``"head:"``, ``"head:out"``; without the colon where the output has no such entry). None takes the
            network's own ``prediction_path`` where it has one.
        label_space: puts the classes of the prediction together to others; None leaves them.
        scale: the network sees the images enlarged by this factor, on the grid on which its maps are brought back.

    The constructor registers the hooks: wrap first, then ``taps.compile()`` or ``DDP(taps)``. The keys of the wrapped
    network carry ``model.`` in `Taps.state_dict`; save ``taps.model``.

    Raises:
        UserError: a module path does not exist (nearest names are given) or the network has no modules that can be
            tapped, at once; a tap does not fire, its path leads nowhere, its tokens do not lie on a grid, or the
            output is not understood, in the first forward.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1))
        >>> output = Taps(network, {"wide": "0"})(torch.rand(1, 3, 4, 4))
        >>> output.prediction.shape, output.features["wide"].shape
        (torch.Size([1, 5, 4, 4]), torch.Size([1, 8, 4, 4]))
    """

    model: nn.Module
    input_mean: Tensor
    input_std: Tensor

    def __init__(
        self,
        model: nn.Module,
        taps: Mapping[str, str] | None = None,
        input_spec: InputSpec | None = None,
        prediction: str | None = None,
        label_space: LabelSpace | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.set_input(input_spec or getattr(model, "input_spec", None))
        self.prediction = prediction or getattr(model, "prediction_path", None)
        self.label_space = label_space
        if scale <= 0:
            raise ValueError(f"scale is {scale}; expected a factor above 0")
        self.scale = scale
        self.patch = patch_size(model)
        refuse_taps(model, taps)
        self.recorders: dict[str, Recorder] = {}
        self.tally = Tally()
        self.firings = 0  # how often all recorders fire in a whole forward in eval mode; 0 before the first one
        for name, tap in (taps or {}).items():
            path, _, where = tap.partition(":")
            module = find_module(model, path, tap)
            self.recorders[name] = Recorder(tap, where, self.tally)
            module.register_forward_hook(self.recorders[name])
        self.answer = answer_recorder(model, self.prediction)

    def set_input(self, spec: InputSpec | None) -> None:
        """The input that the network expects; its mean and std become buffers, so that no forward copies them."""
        self.input_spec = spec
        mean = std = None
        if spec is not None:
            device = next((p.device for p in self.model.parameters()), None)
            mean, std = spec.constants(torch.empty(0, device=device))
        self.register_buffer("input_mean", mean, persistent=False)
        self.register_buffer("input_std", std, persistent=False)

    def forward(self, images: Tensor, prediction: bool = True) -> DenseOutput:
        """(N, C, H, W) RGB in [0, 1] -> prediction, auxiliary prediction and tapped tensors.

        Args:
            prediction: False where only the features are wanted: the prediction is None, and from the second forward in
                eval mode on, the network is left when its last tap has fired. (The first shows how often taps fire: a
                module that runs twice gives its last result. A network that is compiled, or sharded by FSDP2, always
                runs to its end.)
        """
        if self.scale != 1:
            images = resize_map(images, self.seen_size(images.shape[-2], images.shape[-1]))
        if self.input_spec is not None:
            constants = self.input_mean.to(images), self.input_std.to(images)
            images = self.input_spec.normalize(images, constants)
        recorders = [*self.recorders.values(), *([] if self.answer is None else [self.answer])]
        for recorder in recorders:
            recorder.on = True
        try:
            raw = self._run(images, prediction)
            answer, aux = self._prediction(raw) if prediction else (None, None)
            height, width = images.shape[-2:]
            features = {
                name: read(recorder, (height, width), self.patch)
                for name, recorder in self.recorders.items()
            }
        finally:
            # Nothing may outlive the step: a kept tensor keeps its whole graph.
            for recorder in recorders:
                recorder.on, recorder.value = False, None
        return DenseOutput(prediction=answer, aux=aux, features=features)

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the network sees of images of this size."""
        return max(1, round(height * self.scale)), max(1, round(width * self.scale))

    def _prediction(self, raw: Any) -> tuple[Any, Tensor | None]:
        """The prediction, its classes put together, and the auxiliary one."""
        if self.prediction is None:
            answer, aux = find_prediction(raw)
        else:
            path, where, recorder = self.prediction, self.prediction, self.answer
            if recorder is not None and (":" in path or not holds(raw, path)):
                raw, where = recorder.value, recorder.where
            answer, aux = follow(raw, where, f"prediction {path!r}"), None
        return (answer if self.label_space is None else self.label_space(answer)), aux

    def _run(self, images: Tensor, prediction: bool) -> Any:
        """What the network returns; None where it was left early."""
        if torch.compiler.is_compiling():
            return self.model(images)
        early = not prediction and not self.training and self.firings > 0
        # FSDP2 gives a module's weights back when its forward has ended. (Its class takes long to import.)
        early = early and not any(hasattr(m, "unshard") for m in self.model.modules())
        self.tally.fired, self.tally.last = 0, self.firings if early else None
        try:
            raw = self.model(images)
        except _Enough:
            return None
        finally:
            self.tally.last = None
        if not self.training:
            self.firings = self.tally.fired
        return raw


def refuse_taps(model: nn.Module, taps: Mapping[str, str] | None) -> None:
    """A network may say in ``no_taps`` why nothing inside of it can be read."""
    reason = getattr(model, "no_taps", None)
    if reason and taps:
        raise UserError(f"tap {next(iter(taps.values()))!r}: {reason}")


def answer_recorder(model: nn.Module, prediction: str | None) -> Recorder | None:
    """A recorder at the module that a prediction's path names; None where it names none."""
    if prediction is None:
        return None
    path, colon, where = prediction.partition(":")
    if not colon and path not in dict(model.named_modules()):
        return None
    recorder = Recorder(prediction, where)
    find_module(model, path, prediction).register_forward_hook(recorder)
    return recorder


def find_module(model: nn.Module, path: str, tap: str) -> nn.Module:
    modules = dict(model.named_modules())
    if path and path in modules:
        return modules[path]
    names = [name for name in modules if name]
    near = nearest(path, names, 3) or names[:8]
    raise UserError(
        f"tap {tap!r}: {type(model).__name__} has no module {path!r}; near it are {', '.join(near)} "
        "(`densekd taps` or `densekd.models.list_taps(model, images)` lists all)"
    )


ALL = "*"  # the path that takes every map of a container


def read(recorder: Recorder, image: Grid, patch: int | None) -> Maps:
    """What a tap gives: a map, or a list of all maps of a container.

    Args:
        image: (height, width) of the network's input.
        patch: see `patch_size`.
    """
    if recorder.value is None:
        raise UserError(
            f"tap {recorder.tap!r} never fired: its module did not run in this forward pass "
            "(an auxiliary head in eval mode, or a module used by its weights only); tap another module"
        )
    module = recorder.tap.partition(":")[0]
    inside, _, last = recorder.where.rpartition(".")
    if last == ALL:
        value = follow(recorder.value, inside, f"tap {recorder.tap!r}")
        found = levels(value, f"tap {recorder.tap!r}", module, image, patch)
        given = list(value.values()) if isinstance(value, Mapping) else list(value)
        recorder.turned = _turned(given, found)
        return found
    value = follow(recorder.value, recorder.where, f"tap {recorder.tap!r}")
    if not isinstance(value, Tensor):
        raise UserError(
            f"tap {recorder.tap!r} gives {describe(value)}, not a tensor; add a path into it after a colon, "
            f"such as {module + ':' + example(value)!r}, or {module + ':*'!r} for all its maps"
        )
    found = as_map(value, image, patch)
    if found.ndim == 3:
        raise UserError(
            f"tap {recorder.tap!r} gives tokens {tuple(found.shape)}, and for an image of {image[0]}x{image[1]} it "
            "does not follow which grid they lie on (patches of one size, and up to 16 class and register tokens "
            "before them); tap a module that gives (N, C, h, w), or all tokens of the image"
        )
    recorder.turned = _turned([value], [found])
    return found


def _turned(given: Sequence[Tensor], found: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """The shapes of the tensors that were no maps (N, C, h, w) as they came."""
    return [tuple(x.shape) for x, y in zip(given, found, strict=True) if x is not y]


def levels(value: Any, who: str, module: str, image: Grid, patch: int | None) -> list[Tensor]:
    """Every map of a container, in its order."""
    maps = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(maps, tuple | list):
        maps = [as_map(m, image, patch) if isinstance(m, Tensor) else m for m in maps]
    if not isinstance(maps, tuple | list) or not maps or not all(is_map(m) for m in maps):
        raise UserError(
            f"{who} asks for all maps of a container and {module!r} gives {describe(value)}; "
            "tap a module that returns a list or mapping of (N, C, h, w) tensors, or leave ':*' out"
        )
    return list(maps)


def is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
