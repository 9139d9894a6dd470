"""What is made equal between student and teachers is said as it was measured, and nothing where nothing is."""

import pytest
import torch
from torch import nn

from densekd.distill.discriminator import Discriminator
from densekd.distill.distiller import Adversary, Distiller
from densekd.distill.term import Term
from densekd.losses import FeatureMimic, PairWise, PixelWise
from densekd.models.taps import Taps
from densekd.types import InputSpec
from tests.distill.helpers import CLASSES, make_task

IMAGES = torch.rand(1, 3, 32, 48)


def network(width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=stride, padding=1), nn.ReLU(), nn.Conv2d(width, CLASSES, 1)
    )


class Tokens(nn.Module):
    """Patches of 8, a class token before them, and logits at stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, stride=8)
        self.blocks = nn.Identity()
        self.head = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x):
        x = self.patches(x)
        tokens = x.flatten(2).transpose(1, 2)
        self.blocks(torch.cat([tokens[:, :1], tokens], 1))
        return self.head(x)


def terms(student: str = "1", teacher: str = "1", adapter: nn.Module | None = None) -> list[Term]:
    return [
        Term("pixel_wise", PixelWise()),
        Term("mimic", FeatureMimic(), student=student, teacher=teacher, adapter=adapter),
    ]


def test_a_pair_that_fits_has_no_line():
    distiller = Distiller(network(8, 4), make_task(), teacher=network(8, 4), terms=terms())
    assert distiller.alignment(IMAGES) == []
    assert Distiller(network(8, 4), make_task()).alignment(IMAGES) == []


def test_channels_sizes_and_the_discriminators_map():
    distiller = Distiller(
        network(8, 4),
        make_task(),
        teacher=network(12, 2),
        terms=terms(adapter=nn.Conv2d(8, 12, 1)),
        adversary=Adversary(Discriminator(CLASSES, channels=8)),
    )
    assert distiller.alignment(IMAGES) == [
        "pixel_wise: the teacher's prediction is resized, 16x24 -> 8x12",
        "mimic: the student's 1: 8 -> 12 channels by a 1x1 convolution that trains with the student and is not "
        "exported; the teacher's 1 is resized, 16x24 -> 8x12",
        "holistic: the teacher's prediction is resized, 16x24 -> 8x12",
    ]
    assert distiller.student.training  # modes are as they were


def test_tokens_and_a_finer_student():
    pair = [Term("pair_wise", PairWise(), student="1", teacher="blocks")]
    distiller = Distiller(network(8, 4), make_task(), teacher=Tokens(), terms=pair)
    assert distiller.alignment(IMAGES) == [
        "pair_wise: the teacher's blocks: 25 tokens become a map 4x6, without the first 1 (class or register); "
        "the student's 1 is resized, 8x12 -> 4x6"
    ]


def test_the_teachers_own_input():
    own = Taps(network(8, 4), {"1": "1"}, InputSpec())
    other = InputSpec((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "bgr", 255.0)
    tapped = Taps(network(8, 4), {"1": "1"}, other, scale=2)
    lines = Distiller(own, make_task(), teacher=tapped, terms=terms()).alignment(IMAGES)
    assert lines[0] == (
        "the teacher sees its own input: order bgr instead of rgb, range 255 instead of 1, mean [104, 117, 123] "
        "instead of [0.485, 0.456, 0.406], std [1, 1, 1] instead of [0.229, 0.224, 0.225], 64x96 pixels instead of "
        "32x48"
    )
    assert lines[1:] == [
        "pixel_wise: the teacher's prediction is resized, 16x24 -> 8x12",
        "mimic: the teacher's 1 is resized, 16x24 -> 8x12",
    ]
    bare = {"a": Taps(network(8, 4), {}, InputSpec()), "b": network(8, 4)}
    lines = Distiller(own, make_task(), teacher=bare, terms=terms()[:1]).alignment(IMAGES)
    assert lines == [
        "teacher b sees its own input: pixels in [0, 1] as they are, and the student's are normalised"
    ]


def test_a_larger_image_is_what_the_network_sees():
    seen = []

    class Net(nn.Conv2d):
        def forward(self, x):
            seen.append(x.shape)
            return super().forward(x)

    tapped = Taps(Net(3, CLASSES, 1), {}, scale=1.5)
    assert tapped(IMAGES).prediction.shape == (1, CLASSES, 48, 72)
    assert seen == [(1, 3, 48, 72)]
    # A constant image stays one: enlarging adds nothing.
    flat = torch.full((1, 3, 8, 8), 0.25)
    small = Taps(tapped.model)(flat).prediction.mean((2, 3))
    torch.testing.assert_close(tapped(flat).prediction.mean((2, 3)), small)
    with pytest.raises(ValueError, match="scale is 0"):
        Taps(nn.Identity(), scale=0)
