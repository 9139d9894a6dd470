"""The graph that is exported: normalisation, the network, and what decodes its maps, for any batch and size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from densekd.errors import UserError, first_line
from densekd.models.taps import Taps, evaluating
from densekd.ops.resize import resize_map
from densekd.rewrite import constants, is_int8, unseen_layers
from densekd.tasks import Task
from densekd.types import InputSpec

# What the graph gives besides the network's own maps, and the task that it belongs to.
ENDS = {
    "argmax": "segmentation",
    "metres": "depth",
    "boxes": "detection",
    "detections": "detection",
}
OUTPUTS = {
    "argmax": ("classes",),
    "metres": ("depth",),
    "boxes": ("boxes", "scores", "levels"),
    "detections": ("boxes", "scores", "labels"),
}
OF_BOXES = ("boxes", "detections")
SMALLEST = (
    64  # pixels: below, the coarsest maps of many networks have one place, which is another program
)
DIVISOR = 32  # of the sizes of a network whose program holds for its multiples only
LARGEST = 1024  # pixels to which a detector's example grows


class Deployed(nn.Module):
    """RGB images in [0, 1] -> the answer, in one graph.

    Args:
        network: the bare network.
        end: ``"argmax"``: class of each pixel at the image's size; ``"metres"``: depth at the image's size;
            ``"boxes"``: the boxes of all places with their scores, before NMS (`DecodedBoxes`);
            ``"detections"``: the boxes after NMS (`FinalBoxes`);
            ``"none"``: the network's maps as they are.
    """

    def __init__(self, network: nn.Module, task: Task, spec: InputSpec, end: str) -> None:
        super().__init__()
        self.tapped = Taps(network, {}, spec)
        self.task = task
        self.end = end
        self.kind = ""  # of a detector
        self.outputs = OUTPUTS.get(end, ("prediction",))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.end in OF_BOXES:
            task: Any = self.task
            decode = task.all_boxes if self.end == "boxes" else task.final_boxes
            return decode(self.tapped(images).prediction, (images.shape[-2], images.shape[-1]))
        scores = self.scores(images)
        if self.end != "argmax":
            return scores
        return scores.argmax(1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32)

    def scores(self, images: Tensor) -> Tensor:
        """The map before the argmax."""
        maps = self.tapped(images).prediction
        if self.end == "none":
            return maps
        if self.end == "metres":
            maps = self.task.decode(maps)  # type: ignore[attr-defined]
        return resize_map(maps, (images.shape[-2], images.shape[-1]))


@dataclass(frozen=True)
class Graph:
    """A traced `Deployed`.

    Attributes:
        divisor: heights and widths must be multiples of it.
        example: (height, width) it was traced at.
        int8: its layers round, and weights are int8.
        fixed: it takes one image of the example's size, and no other.
        limits: the smallest and the largest height, and width, that the tracing found it to hold for; None where there
            is no largest.
    """

    module: Deployed
    program: ExportedProgram
    divisor: int
    example: tuple[int, int]
    channels: int
    int8: bool = False
    fixed: bool = False
    limits: tuple[tuple[int, int | None], ...] = ((SMALLEST, None), (SMALLEST, None))

    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Three shapes to check it at: the traced one, a single image, and an odd or longer size; else three images."""
        height, width = self.example
        if self.fixed:
            return [(1, self.channels, height, width)] * 3
        other = (height + 13, width + 7) if self.divisor == 1 else (height + 64, width + 32)
        sizes = [(2, height, width), (1, height + 32, width + 96), (3, *other)]
        return [(n, self.channels, h, w) for n, h, w in sizes]


def end_of(task: Task, wanted: str | None) -> str:
    """What the graph ends with: the task's own end where none is named."""
    if wanted is None:
        return next((end for end, name in ENDS.items() if name == task.name), "none")
    if (wanted == "none" and task.name == "detection") or ENDS.get(wanted, task.name) != task.name:
        own = [end for end, name in ENDS.items() if name == task.name]
        if task.name == "detection":
            raise UserError(f"--with {wanted}: a detector is exported with {' or '.join(own)}")
        raise UserError(
            f"--with {wanted}: is of {ENDS.get(wanted)}; this is {task.name}: {', '.join([*own, 'none'])}"
        )
    return wanted


def example_size(spec: InputSpec, size: tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) a graph is traced at: multiples of 32 that are unequal, near those asked for."""
    height, width = size or spec.size or (192, 256)
    if size is not None and min(size) < SMALLEST:
        raise UserError(f"--size {height} {width}: must be at least {SMALLEST} pixels a side")
    height, width = (max(SMALLEST, round(v / DIVISOR) * DIVISOR) for v in (height, width))
    return height, width + (DIVISOR if height == width else 0)


def fixed(
    network: nn.Module, task: Task, spec: InputSpec, end: str, size: tuple[int, int]
) -> Graph:
    """Export for one image of exactly this (height, width), as runtimes without free sizes need it.

    Raises:
        UserError: the network cannot be traced at this size.
    """
    module = Deployed(network, task, spec, end).eval()
    images = torch.rand(1, spec.channels, *size)
    try:
        with evaluating(module), torch.no_grad(), constants(network, plain=True):
            if end in OF_BOXES:
                module.kind = module.tapped(images).prediction.kind
            program = torch.export.export(module, (images,))
    except Exception as error:  # torch.export's errors have no common base class
        raise UserError(
            f"{type(network).__name__} cannot be exported at {size[0]}x{size[1]}: "
            f"{first_line(error)}"
        ) from error
    return Graph(module, program, 1, size, spec.channels, fixed=True)


def trace(
    network: nn.Module,
    task: Task,
    spec: InputSpec,
    end: str,
    size: tuple[int, int],
    *,
    plain: bool = False,
) -> Graph:
    """Export with free batch, height and width, from two images that are not square.

    A network whose program depends on how its sizes divide is exported for multiples of `DIVISOR`. A detector whose
    coarsest maps have one place at `size` is traced at a larger one.

    Args:
        plain: of torch's own operations alone, as a program must be that runs without densekd.

    Raises:
        UserError: the network cannot be traced.
    """
    unseen = unseen_layers(network)
    if unseen:
        raise UserError(
            f"{unseen[0]} and {len(unseen) - 1} more have seen no batch of training, so their ranges are unknown; "
            "train the network with model.int8 first"
        )
    module = Deployed(network, task, spec, end).eval()
    batch = Dim("batch", min=1)
    kinds = {
        1: (Dim("height", min=SMALLEST), Dim("width", min=SMALLEST)),
        DIVISOR: tuple(DIVISOR * Dim(f"{name}_{DIVISOR}", min=2) for name in ("height", "width")),
    }
    with evaluating(module), torch.no_grad(), constants(network, plain=plain):
        if end in OF_BOXES:
            module.kind, size = large_enough(module, spec.channels, size)
        images = torch.rand(2, spec.channels, *size)
        error: Exception | None = None
        for divisor, (height, width) in kinds.items():
            shapes = {"images": {0: batch, 2: height, 3: width}}
            try:
                program = torch.export.export(module, (images,), dynamic_shapes=shapes)
            except Exception as failure:  # torch.export's errors have no common base class
                error = failure
                continue
            return Graph(
                module,
                program,
                divisor,
                size,
                spec.channels,
                int8=is_int8(network),
                limits=limits_of(program),
            )
    assert error is not None
    raise UserError(
        f"{type(network).__name__} cannot be exported by torch.export: {first_line(error)}"
    ) from error


def large_enough(
    module: Deployed, channels: int, size: tuple[int, int]
) -> tuple[str, tuple[int, int]]:
    """A detector's kind, and the size at which no map has one place, which would fix the graph to such sizes.

    SSD's last map has one place at the size that it is made for.
    """
    while True:
        raw = module.tapped(torch.rand(1, channels, *size)).prediction
        levels = raw.logits[:-1] if raw.kind == "ssd" else raw.logits
        if min(min(x.shape[-2:]) for x in levels) > 1 or max(size) >= LARGEST:
            return raw.kind, size
        size = (size[0] + DIVISOR, size[1] + DIVISOR)


def limits_of(program: ExportedProgram) -> tuple[tuple[int, int | None], ...]:
    """The smallest and the largest height, and width, of the images that a traced program holds for."""
    (images,) = (
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    )
    found: list[tuple[int, int | None]] = []
    for side in images.shape[-2:]:
        if isinstance(side, int):
            found.append((side, side))
            continue
        symbols = {
            symbol: program.range_constraints[symbol]
            for symbol in side.node.expr.free_symbols
            if symbol in program.range_constraints
        }
        bounds = [
            side.node.expr.subs({symbol: getattr(limit, end) for symbol, limit in symbols.items()})
            for end in ("lower", "upper")
        ]
        low, high = (int(bound) if bound.is_Integer else None for bound in bounds)
        found.append((low or 1, high))
    return tuple(found)
