"""Every tensor of a network that can be tapped, and which of them are worth comparing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from densekd.models.layout import Grid, as_map, patch_size, similar
from densekd.models.taps import Recorder, Tally, Taps, evaluating, refuse_taps
from densekd.types import InputSpec

DEFAULT = "default"  # the mark of the network's own `pair_wise_tap`


@dataclass(frozen=True)
class TapRow:
    """A tensor that can be tapped.

    Attributes:
        path: the path that `Taps` takes.
        kind: the class of the module.
        shape: the shape of the tensor, as `Taps` gives it.
        stride: image height over map height, rounded; None for tensors that are not (N, C, h, w).
        order: which tensor of the forward it was, counted from 0; a module returns after the modules inside of it.
        runs: how often its module ran in the forward; a tap gives the last result.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    stride: int | None
    order: int = 0
    runs: int = 1


def list_taps(
    model: nn.Module, images: Tensor, input_spec: InputSpec | None = None
) -> list[TapRow]:
    """Run `model` once, in eval mode, and list every tensor that its modules return, in the order of the modules.

    Args:
        model: the bare network; its mode is restored.
        images: (N, C, H, W) RGB in [0, 1].
        input_spec: has the same meaning as in `Taps`.
    """
    refuse_taps(model, {"": "*"})
    paths = [name for name, _ in model.named_modules() if name]
    tally = Tally()
    recorders = {path: Recorder(path, "", tally) for path in paths}
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    handles = [model.get_submodule(p).register_forward_hook(r) for p, r in recorders.items()]
    spec = input_spec or getattr(model, "input_spec", None)
    try:
        with evaluating(model), torch.no_grad():
            for recorder in recorders.values():
                recorder.on = True
            model(images if spec is None else spec.normalize(images))
    finally:
        for handle in handles:
            handle.remove()
    height, width = images.shape[-2:]
    patch = patch_size(model)
    found = [
        (recorder, tap, kinds[path], as_map(value, (height, width), patch))
        for path, recorder in recorders.items()
        for tap, value in tensors_in(recorder.value, path)
    ]
    ranks = {tap: i for i, (_, tap, *_) in enumerate(sorted(found, key=lambda row: row[0].fired))}
    return [
        TapRow(tap, kind, tuple(value.shape), stride_of(value, height), ranks[tap], recorder.runs)
        for recorder, tap, kind, value in found
    ]


def stride_of(value: Tensor, height: int) -> int | None:
    return max(1, round(height / value.shape[-2])) if value.ndim == 4 else None


def tensors_in(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, tuple | list):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return
    for key, inner in items:
        yield from tensors_in(inner, f"{path}.{key}" if ":" in path else f"{path}:{key}")


def sensible_taps(
    model: nn.Module, rows: Sequence[TapRow], size: Grid, classes: int
) -> dict[str, list[str]]:
    """Tap path -> why it is worth comparing; in the order in which the network computes them.

    Marked are the network's own default tap, the last map of each stride, and what returns the maps of several strides
    (``path:*``, the levels of a pyramid). Left out are maps as wide as the image or the prediction (they are these),
    what a module gives that runs several times (a detector's head), what is not of the image's shape (attention), and
    dropout.

    Args:
        rows: of `list_taps`.
        size: (height, width) of the image that was listed with.
        classes: how many channels the prediction has.
    """
    maps = sorted((row for row in rows if is_sensible(row, size, classes)), key=lambda r: r.order)
    marks: dict[str, list[str]] = {}
    own = getattr(model, "pair_wise_tap", None)
    # Other strides are those of pooled maps.
    patch = patch_size(model) or 1
    last = {row.stride: row for row in maps if is_regular(row.stride or 0, patch)}
    marked = {row.path: [f"last at stride {stride}"] for stride, row in last.items()}
    for row in maps:
        if row.path in marked:
            marks[row.path] = marked[row.path]
    for path in dict.fromkeys(row.path.partition(":")[0] for row in maps if ":" in row.path):
        levels = [row for row in rows if row.path.partition(":")[0] == path]
        strides = [row.stride or 0 for row in levels]
        # A level is one entry deep; every one is a map, of a stride of its own, from fine to coarse.
        deep = any("." in row.path.partition(":")[2] for row in levels)
        if len(levels) > 1 and not deep and 0 not in strides and sorted(set(strides)) == strides:
            marks[f"{path}:*"] = [f"levels at strides {', '.join(map(str, strides))}"]
    if own is not None:
        marks[own] = [DEFAULT, *marks.get(own, [])]
    return marks


def is_regular(stride: int, patch: int) -> bool:
    """Whether a stride comes from halving, of the image or of patches."""
    return stride > 0 and (stride & (stride - 1) == 0 or (patch > 1 and stride % patch == 0))


def is_sensible(row: TapRow, size: Grid, classes: int) -> bool:
    if len(row.shape) != 4 or row.runs > 1 or row.kind.startswith(("Dropout", "Identity")):
        return False
    _, channels, height, width = row.shape
    of_the_image = height > 1 and width > 1 and similar(height, width, size)
    return of_the_image and channels not in (1, 3, classes)


def candidates(model: nn.Module, images: Tensor, input_spec: InputSpec | None = None) -> list[str]:
    """Up to three taps for a network that names none itself: the last maps of their strides, the latest first.

    Strides of 4 and more come first: finer maps cost much and say little more. Empty where nothing is sensible.
    """
    rows = list_taps(model, images, input_spec)
    classes = prediction_channels(model, images, input_spec)
    order = {row.path: row for row in rows}
    height, width = images.shape[-2:]
    marks = sensible_taps(model, rows, (height, width), classes)
    marked = [path for path in marks if path in order]
    found = [order[path] for path in marked]
    found.sort(key=lambda row: ((row.stride or 0) < 4, -row.order))
    return [row.path for row in found[:3]]


def prediction_channels(
    model: nn.Module, images: Tensor, input_spec: InputSpec | None = None
) -> int:
    """How many channels the prediction has; 0 where it is no map (a detector's)."""
    with evaluating(model), torch.no_grad():
        answer = Taps(model, {}, input_spec)(images).prediction
    return int(answer.shape[1]) if isinstance(answer, Tensor) and answer.ndim == 4 else 0
