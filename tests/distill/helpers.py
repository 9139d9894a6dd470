"""A distiller of tiny networks, for the tests of the step."""

from __future__ import annotations

import torch

from densekd.distill.discriminator import Discriminator, DiscriminatorLoss
from densekd.distill.distiller import Adversary, Distiller
from densekd.distill.teacher import Teacher
from densekd.distill.term import Term
from densekd.losses import PairWise, PixelWise
from densekd.models.espnet import espnet, espnet_c
from densekd.models.taps import Taps
from densekd.tasks import Segmentation
from densekd.types import Batch

CLASSES = 5


def make_task(**options) -> Segmentation:
    return Segmentation(
        [f"class {i}" for i in range(CLASSES)], [(i, i, i) for i in range(CLASSES)], **options
    )


def make_batch(n: int = 4, size: tuple[int, int] = (64, 96), seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(n, 3, *size, generator=generator),
        targets=torch.randint(0, CLASSES, (n, *size), generator=generator),
        labelled=torch.ones(n, dtype=torch.bool),
        inside=torch.ones(n, *size, dtype=torch.bool),
        names=[f"image {i}" for i in range(n)],
    )


def make_distiller(
    *, holistic: bool = True, seed: int = 0, terms: list[Term] | None = None, **options
) -> Distiller:
    torch.manual_seed(seed)
    student = Taps(espnet_c(CLASSES, p=1, q=1), {"b3": "b3"}, None)
    teacher = Teacher(Taps(espnet(CLASSES, p=1, q=1), {"b3": "b3"}, None))
    if terms is None:
        terms = [
            Term("pixel_wise", PixelWise(), 10.0),
            Term("pair_wise", PairWise(), 10.0, "b3", "b3"),
        ]
    adversary = (
        Adversary(DiscriminatorLoss(Discriminator(CLASSES, channels=8))) if holistic else None
    )
    return Distiller(
        student, make_task(), teacher=teacher, terms=terms, adversary=adversary, **options
    )
