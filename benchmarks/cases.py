"""The student-teacher pairs that the scripts measure, built by the code of a run, with random weights and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from densekd.build.distiller import build_distiller
from densekd.build.step import build_discriminator_optimizer, build_optimizer
from densekd.config.load import make_config
from densekd.config.schema import Config
from densekd.distill.distiller import Distiller
from densekd.engine.step import Step
from densekd.tasks import Depth, Detection, Segmentation, Task
from densekd.types import Batch, Boxes


@dataclass(frozen=True)
class Case:
    """A pair and the sizes at which it is measured.

    Attributes:
        student, teacher: (name, options) of the networks.
        classes: the number of classes.
        cpu, cuda: (batch, height, width) on that device.
        dry: small networks of the same kind, for ``--dry``.
        task: ``"segmentation"``, ``"detection"`` or ``"depth"``, whose `classes` are bins (0: metres).
        pair_wise: the options of that term.
        losses: of depth, its supervised terms.
    """

    student: tuple[str, dict[str, Any]]
    teacher: tuple[str, dict[str, Any]]
    classes: int
    cpu: tuple[int, int, int]
    cuda: tuple[int, int, int]
    dry: tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]
    task: str = "segmentation"
    pair_wise: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, float] | None = None


_ESPNET = {"p": 2, "q": 8}
_SMALL = {"p": 1, "q": 1}
_FCOS = {
    "backbone": "mobilenetv3_small_050",
    "pyramid_channels": 64,
    "extra_levels": 0,
    "head_convs": 1,
}
_DEPTH = {"backbone": "tf_efficientnet_lite0"}
_TINY = {"backbone": "test_resnet", "pyramid_channels": 16}
_LITE = {"backbone": "tf_efficientnet_lite0", "output_stride": 8, "psp_channels": 128}
CASES = {
    "espnet_c_from_espnet": Case(
        ("espnet_c", _ESPNET), ("espnet", _ESPNET), 11, (4, 360, 480), (16, 360, 480),
        (("espnet_c", _SMALL), ("espnet", _SMALL)),
    ),
    "espnet_from_psp_lite0": Case(
        ("espnet", _ESPNET), ("psp_timm", _LITE), 11, (2, 360, 480), (16, 360, 480),
        (("espnet", _SMALL), ("psp_timm", _LITE)),
    ),
    "psp_lite0_from_espnet": Case(  # the other way round: what a timm network's own step costs
        ("psp_timm", _LITE), ("espnet", _ESPNET), 11, (2, 360, 480), (16, 360, 480),
        (("psp_timm", _LITE), ("espnet", _SMALL)),
    ),
    "espnet_c_from_espnetv2": Case(  # a teacher of many small operations
        ("espnet_c", _ESPNET), ("espnetv2", {"width": 2.0}), 19, (2, 224, 320), (16, 512, 1024),
        (("espnet_c", _SMALL), ("espnetv2", {"width": 0.5})),
    ),
    "pspnet_r18_from_r101": Case(
        ("pspnet_resnet18", {}), ("pspnet_resnet101", {}), 19, (2, 192, 192), (8, 512, 512),
        (("pspnet_resnet18", {}), ("pspnet_resnet18", {})),
    ),
    "fcos_mv2_from_r50": Case(  # class logits and pyramids, level by level
        ("fcos_mobilenetv2_c128", {}), ("fcos_resnet50", {}), 80, (2, 256, 256), (8, 800, 1088),
        (("fcos_timm", _FCOS), ("fcos_timm", _FCOS)), "detection", {"granularity": 4},
    ),
    "depth_lite0_from_r18": Case(
        ("depth_timm", _DEPTH), ("depth_timm", {"backbone": "resnet18"}), 0, (2, 240, 320), (16, 240, 320),
        (("depth_timm", _TINY), ("depth_timm", _TINY)), "depth", {}, {"silog": 1.0, "berhu": 1.0},
    ),
    "bins_lite0_from_r18": Case(
        ("depth_timm", _DEPTH), ("depth_timm", {"backbone": "resnet18"}), 40, (2, 240, 320), (16, 240, 320),
        (("depth_timm", _TINY), ("depth_timm", _TINY)), "depth", {},
    ),
}  # fmt: skip
# The pairs that are measured where none is named.
STANDARD = ["espnet_c_from_espnet", "espnet_from_psp_lite0", "pspnet_r18_from_r101", "fcos_mv2_from_r50"]  # fmt: skip
SIZE: dict[str, Any] = {
    "nargs": 3,
    "type": int,
    "metavar": ("BATCH", "HEIGHT", "WIDTH"),
}  # of the option --size


def make_case(
    case: Case,
    device: torch.device,
    *,
    size: tuple[int, int, int] | None = None,
    amp: str = "none",
    channels_last: bool = False,
    compiled: bool = False,
    teacher: dict[str, Any] | None = None,
    dry: bool = False,
) -> tuple[Config, Distiller, Batch]:
    """The recipe, its distiller with all three terms, and one batch on the device.

    Args:
        size: (batch, height, width) instead of the case's own.
        compiled: `torch.compile` the student.
        teacher: settings of the teacher's form: ``{"fold_norms": False, "precision": "bf16"}``.
    """
    student, other = case.dry if dry else (case.student, case.teacher)
    n, height, width = size or ((2, 64, 64) if dry else getattr(case, device.type))
    config = make_config(
        {
            "task": case.task,
            "model": {"name": student[0], "options": student[1]},
            "teacher": {
                "name": other[0],
                "options": other[1],
                "allow_untrained": True,
                **(teacher or {}),
            },
            "data": {"dataset": "scenes", "batch_size": n, "crop": [height, width]},
            "distill": {
                "pixel_wise": {"weight": 10},
                "pair_wise": {"weight": 10, "options": case.pair_wise},
                "holistic": {"weight": 0.1},
            },
            # So small a rate that a random teacher pulls the weights nowhere.
            "optim": {"name": "sgd", "lr": 1e-6},
            "train": {"amp": amp, "channels_last": channels_last, "compile": compiled},
        },
        "benchmark",
    )
    torch.manual_seed(0)
    names = [f"class {i}" for i in range(case.classes)]
    palette = [(i, i, i) for i in range(case.classes)]
    task: Task
    targets: Any
    if case.task == "detection":
        task = Detection(names, palette)
        targets = [make_boxes(8, case.classes, (height, width), i) for i in range(n)]
    elif case.task == "depth":
        task = Depth(bins=case.classes, losses=case.losses)
        targets = task.example_targets(n, (height, width), torch.device("cpu"))
    else:
        task = Segmentation(names, palette)
        targets = torch.randint(0, case.classes, (n, height, width))
    distiller, _ = build_distiller(config, task, distil=True, device=device)
    batch = Batch(
        images=torch.rand(n, 3, height, width),
        targets=targets,
        labelled=torch.ones(n, dtype=torch.bool),
        inside=torch.ones(n, height, width, dtype=torch.bool),
        names=[f"image {i}" for i in range(n)],
    )
    return config, distiller, batch.to(device, channels_last)


def make_boxes(count: int, classes: int, size: tuple[int, int], image_id: int) -> Boxes:
    """Random objects of a tenth to half of the image's sides."""
    limit = torch.tensor([size[1], size[0]], dtype=torch.float32)
    sides = limit * torch.empty(count, 2).uniform_(0.1, 0.5)
    corner = torch.rand(count, 2) * (limit - sides)
    return Boxes(
        boxes=torch.cat([corner, corner + sides], 1),
        labels=torch.randint(0, classes, (count,)),
        ignored=torch.zeros(count, dtype=torch.bool),
        areas=sides.prod(1),
        image_id=image_id,
        size=size,
    )


def make_step(config: Config, distiller: Distiller, device: torch.device) -> Step:
    """The optimizer step of a run with this distiller."""
    if config.train.compile and distiller.student._compiled_call_impl is None:
        distiller.student.compile()
    return Step(
        distiller,
        build_optimizer(config.optim, distiller.student.model),
        discriminator_optimizer=build_discriminator_optimizer(config.distill.holistic, distiller),
        amp=config.train.amp,
        device=device,
    )
