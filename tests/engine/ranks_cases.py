"""Trainings of tiny networks in float64, on a rank's share of each batch or on all of it.

Run as a process of a group, it trains every case, or those named, and writes the weights:
``python -m tests.engine.ranks_cases FOLDER [CASE ...]``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from densekd.build.step import build_optimizer, wrap_ddp
from densekd.config.schema import Optim
from densekd.distill import Distiller, Term
from densekd.distill.balance import Balance
from densekd.distill.discriminator import Discriminator
from densekd.distill.distiller import Adversary
from densekd.engine.launch import Process, started
from densekd.engine.step import Step, bare
from densekd.losses import (
    CrossImageMemory,
    Dist,
    FitNet,
    PairWise,
    PearsonFeatures,
    PixelWise,
)
from densekd.models.taps import Taps
from densekd.rewrite import synchronise
from densekd.tasks import Depth, Detection, Segmentation, Task
from densekd.types import Batch, Boxes, DepthMaps, DetectorOutput, InputSpec

IMAGES, STEPS, ACCUMULATE = 4, 5, 2
HEIGHT, WIDTH, CLASSES = 16, 24, 3
LABELLED = (1.0, 0.7, 0.05, 0.0)  # the share of each image's pixels: ranks have unequal parts


class Network(nn.Module):
    """A feature with a batch norm, and a head on it."""

    input_spec = InputSpec(mean=(0.5,) * 3, std=(0.5,) * 3)

    def __init__(self, width: int, outputs: int, *, stride: int = 2, positive: bool = False):
        super().__init__()
        self.feature = nn.Sequential(
            nn.Conv2d(3, width, 3, stride, 1), nn.BatchNorm2d(width), nn.Tanh()
        )
        self.head = nn.Conv2d(width, outputs, 3, padding=1)
        self.positive = positive

    def forward(self, x: Tensor) -> Any:
        x = self.head(self.feature(x))
        return 0.5 + F.softplus(x) if self.positive else x


class Detector(Network):
    """Two levels of one anchor a place (FCOS) or of two (RetinaNet, SSD)."""

    def __init__(self, width: int, kind: str):
        self.kind, self.anchors = kind, 1 if kind == "fcos" else 2
        self.logits = self.anchors * (2 + (kind == "ssd"))
        super().__init__(width, self.logits + 4 * self.anchors + 1, stride=4)

    def forward(self, x: Tensor) -> DetectorOutput:
        fine = super().forward(x)
        levels = [fine, F.avg_pool2d(fine, 2)]
        parts = [level.split([self.logits, 4 * self.anchors, 1], dim=1) for level in levels]
        logits, boxes, centerness = ([part[i] for part in parts] for i in range(3))
        if self.kind != "fcos":
            boxes = [b + 0 * c for b, c in zip(boxes, centerness, strict=True)]
        anchors = [self.grid(level.shape[-2:], 4 * 2**i) for i, level in enumerate(levels)]
        return DetectorOutput(
            logits, boxes, centerness if self.kind == "fcos" else None, anchors, self.kind
        )

    def grid(self, size: torch.Size, stride: int) -> Tensor:
        """(places · anchors, 4)."""
        y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        centres = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) * stride + stride / 2
        half = torch.tensor([-1.0, -1.0, 1.0, 1.0]) * stride / 2
        sizes = torch.stack([half * (k + 1) for k in range(self.anchors)])
        return (centres + sizes).reshape(-1, 4)


def make_batch(task: Task, index: int, of_rank: slice, *, sparse: bool = False) -> Batch:
    """The rank's images of a batch; ``sparse``: a pixel of each class in all, so that memories draw without choice."""
    g = torch.Generator().manual_seed(index)
    known = torch.rand(IMAGES, HEIGHT, WIDTH, generator=g) < torch.tensor(LABELLED)[:, None, None]
    labelled = torch.tensor([share > 0 for share in LABELLED])
    images = torch.rand(IMAGES, 3, HEIGHT, WIDTH, generator=g, dtype=torch.float64)
    targets: Any
    if isinstance(task, Segmentation):
        targets = torch.randint(0, CLASSES, (IMAGES, HEIGHT, WIDTH), generator=g)
        targets[~known] = 255
        if sparse:
            targets[:] = 255
            for label in range(CLASSES):
                targets[label // 2, 2 + label, 3] = label
    elif isinstance(task, Depth):
        depth = 1 + 8 * torch.rand(IMAGES, 1, HEIGHT, WIDTH, generator=g, dtype=torch.float64)
        depth[~known[:, None]] = 0.0
        targets = DepthMaps(depth, torch.tensor([[20.0, 20.0, 12.0, 8.0]]).repeat(IMAGES, 1))
    else:
        targets = [_boxes(count, g) for count in (3, 1, 0, 2)]
    if isinstance(targets, DepthMaps):
        targets = DepthMaps(targets.depth[of_rank], targets.intrinsics[of_rank])
    else:
        targets = targets[of_rank]
    return Batch(
        images=images[of_rank],
        targets=targets,
        labelled=labelled[of_rank],
        inside=torch.ones(IMAGES, HEIGHT, WIDTH, dtype=torch.bool)[of_rank],
        names=[f"image {i}" for i in range(IMAGES)][of_rank],
    )


def _boxes(count: int, g: torch.Generator) -> Boxes:
    corner = torch.rand(count, 2, generator=g) * 8
    return Boxes(
        boxes=torch.cat([corner, corner + 8], 1),
        labels=torch.arange(count) % 2,
        ignored=torch.zeros(count, dtype=torch.bool),
        areas=torch.full((count,), 64.0),
        image_id=1,
        size=(HEIGHT, WIDTH),
    )


def segmentation(**options: Any) -> Segmentation:
    names = [str(i) for i in range(CLASSES)]
    return Segmentation(names, [(i, i, i) for i in range(CLASSES)], **options)


def _dense(task: Task, outputs: int, terms: list[Term], *, holistic: bool = True, **more: Any):
    student, teacher = Network(4, outputs, **more), Network(6, outputs, **more)
    return _distiller(task, student, teacher, terms, holistic)


def _distiller(task: Task, student: nn.Module, teacher: nn.Module, terms, holistic: bool):
    taps = {"feature": "feature"}
    adversary = None
    if holistic:
        network = Discriminator(
            task.holistic_channels, channels=4, activation=task.holistic_activation
        )
        adversary = Adversary(network.double())
    return Distiller(
        Taps(student.double(), taps),
        task,
        teacher=Taps(teacher.double(), taps),
        terms=[term.double() for term in terms],
        adversary=adversary,
        mask="padding" if any(term.name == "memory" for term in terms) else "label",
    )


def of_segmentation(**options: Any) -> Distiller:
    terms = [
        Term("pixel_wise", PixelWise(temperature=2.0), 1.0),
        Term("dist", Dist(), 1.0),
        Term("pair_wise", PairWise(), 10.0, "feature", "feature"),
        Term("fitnet", FitNet(), 0.1, "feature", "feature", adapter=nn.Conv2d(4, 6, 1)),
        Term("pearson", PearsonFeatures(), 0.1, "feature", "feature", adapter=nn.Conv2d(4, 6, 1)),
    ]
    return _dense(segmentation(**options), CLASSES, terms)


def of_memory() -> Distiller:
    small = {"pixel_memory": 1, "region_memory": 1, "pixel_contrast": 6, "region_contrast": 6}
    memory = CrossImageMemory(6, CLASSES, **small)
    adapter = nn.Conv2d(4, 6, 1)
    terms = [Term("memory", memory, 1.0, "feature", "feature", adapter=adapter)]
    return _dense(segmentation(), CLASSES, terms, holistic=False, stride=1)


def of_sharded_teacher() -> Distiller:
    """Each rank holds a part of the teacher's weights; of its prediction nothing is asked."""
    terms = [
        Term("pair_wise", PairWise(), 10.0, "feature", "feature"),
        Term("fitnet", FitNet(), 0.1, "feature", "feature", adapter=nn.Conv2d(4, 6, 1)),
    ]
    distiller = _dense(segmentation(), CLASSES, terms, holistic=False)
    assert distiller.teacher is not None
    network = distiller.teacher.network.model
    if torch.distributed.is_initialized():
        whole = sum(p.numel() for p in network.parameters())
        for module in (*network.children(), network):  # children first, as fully_shard asks
            fully_shard(module)
        assert sum(p.to_local().numel() for p in network.parameters()) < whole
    return distiller


def of_balance() -> Distiller:
    terms = [
        Term("pixel_wise", PixelWise(), 0.5, balance=Balance(every=2)),
        Term("pair_wise", PairWise(), 0.5, "feature", "feature", balance=Balance(every=2)),
    ]
    return _dense(segmentation(), CLASSES, terms, holistic=False)


def of_depth() -> Distiller:
    losses = {"silog": 1.0, "berhu": 0.5, "l1": 0.5, "virtual_normal": 1.0}
    terms = [
        Term("pixel_wise", PixelWise(form="regression"), 1.0),
        Term("pair_wise", PairWise(), 1.0, "feature", "feature"),
    ]
    task = Depth(losses=losses, virtual_normal_samples=60)
    return _dense(task, 1, terms, positive=True)


def of_bins() -> Distiller:
    task = Depth(bins=8, losses={"cross_entropy": 1.0})
    return _dense(task, 8, [Term("pixel_wise", PixelWise(), 1.0)])


def of_detection(kind: str) -> Distiller:
    task = Detection(["a", "b"], [(0, 0, 0), (9, 9, 9)])
    terms = [
        Term("pixel_wise", PixelWise(form="sigmoid"), 1.0),
        Term("fitnet", FitNet(), 0.1, "feature", "feature", adapter=nn.Conv2d(4, 6, 1)),
    ]
    return _distiller(task, Detector(4, kind), Detector(6, kind), terms, kind != "ssd")


CASES: dict[str, Callable[[], Distiller]] = {
    "segmentation": of_segmentation,
    "ohem": lambda: of_segmentation(loss="ohem", threshold=0.2, min_kept=0.5),
    "class weights": lambda: of_segmentation(class_weights=[0.2, 1.0, 3.0]),
    "memory": of_memory,
    "sharded teacher": of_sharded_teacher,
    "balance": of_balance,
    "depth": of_depth,
    "depth bins": of_bins,
    "fcos": lambda: of_detection("fcos"),
    "retinanet": lambda: of_detection("retinanet"),
    "ssd": lambda: of_detection("ssd"),
}


def train(name: str, process: Process) -> dict[str, Any]:
    """Weights of all that trains after five steps, the values of the last, and the last of all_reduce's counts."""
    torch.manual_seed(0)
    distiller = CASES[name]()
    each = IMAGES // process.world_size
    of_rank = slice(process.rank * each, (process.rank + 1) * each)
    _share_draws(distiller, of_rank)
    synchronise(distiller.student)
    student = bare(distiller.student)
    optimizer = build_optimizer(Optim(lr=0.05), student.model, distiller.terms)
    adversary = distiller.adversary
    own = None
    if adversary is not None:
        own = torch.optim.SGD(adversary.discriminator.parameters(), lr=0.01, momentum=0.9)
    wrap_ddp(distiller, process)
    step = Step(distiller, optimizer, discriminator_optimizer=own, clip=5.0)
    values: dict[str, float] = {}
    for number in range(STEPS):
        torch.manual_seed(100 * number + process.rank)
        batches = [
            make_batch(distiller.task, ACCUMULATE * number + i, of_rank, sparse=name == "memory")
            for i in range(ACCUMULATE)
        ]
        values = step(batches, number)
    weights = dict(student.state_dict())
    if adversary is not None:
        weights |= {f"adversary.{k}": v for k, v in adversary.discriminator.state_dict().items()}
    everything = make_batch(distiller.task, 0, slice(0, IMAGES))
    assert distiller.teacher is not None
    answer = distiller.teacher(everything.images).prediction
    outputs = answer.logits[0] if isinstance(answer, DetectorOutput) else answer
    return {"weights": weights | {"the teacher's output": outputs}, "values": values}


def _share_draws(distiller: Distiller, of_rank: slice) -> None:
    """What a step draws at random becomes a function of the image, so that one process can draw the same."""
    g = torch.Generator().manual_seed(7)
    triples = torch.rand(IMAGES, 60, 3, generator=g)
    module = sys.modules["densekd.losses.virtual_normal"]
    module._draw = lambda n, *_: triples[of_rank]
    original = distiller.discriminator_phase
    counted = iter(range(10**6))

    def phase(maps: Any) -> dict[str, Tensor]:
        alpha = torch.rand(IMAGES, 1, 1, 1, generator=torch.Generator().manual_seed(next(counted)))
        return original(maps, alpha[of_rank].double())

    distiller.discriminator_phase = phase


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    with started("cpu") as process:
        result = {name: train(name, process) for name in names or CASES}
        torch.save(result, Path(folder) / f"rank{process.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
