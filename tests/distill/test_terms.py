"""Terms over the levels of a pyramid, weighted by the teacher's confidence."""

import pytest
import torch
from torch import nn

from densekd.distill.source import maps_of
from densekd.distill.term import Points, Term
from densekd.losses import PixelWise
from densekd.ops.resize import resize_labels, resize_map
from densekd.types import DenseOutput
from tests.distill.helpers import make_task

SIZES = ((8, 12), (4, 6), (2, 3))


def pyramid(channels=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=draw) for size in SIZES]


def output(maps, name="fpn"):
    return DenseOutput(torch.zeros(2, 5, 8, 12), features={name: maps})


def terms_of(terms, student, teacher, mask=None):
    """Each term's value by name, against a live teacher's output."""
    task = make_task()
    maps = maps_of(teacher, terms, task)
    return {f"distill/{term.name}": term(student, maps, mask, task) for term in terms}


class Weighted(nn.Module):
    """Writes down what it was called with."""

    confidence = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, student, teacher, mask=None, weight=None):
        self.seen.append((student.shape, None if mask is None else mask.shape, weight))
        return (student - teacher).square().mean()


def test_levels_are_averaged():
    student, teacher = pyramid(seed=0), pyramid(seed=1)
    term = Term("kl", PixelWise(), 2.0, "fpn", "fpn")
    value = terms_of([term], output(student), output(teacher))["distill/kl"]
    each = [PixelWise()(s, t) for s, t in zip(student, teacher, strict=True)]
    assert value.item() == pytest.approx(2.0 * sum(each).item() / 3)


@pytest.mark.parametrize("changed", range(len(SIZES)))
def test_every_level_counts(changed):
    student, teacher = pyramid(), pyramid()
    term = Term("kl", PixelWise(), 1.0, "fpn", "fpn")
    same = terms_of([term], output(student), output(teacher))["distill/kl"]
    assert same.item() == pytest.approx(0, abs=1e-6)
    student[changed] = student[changed].flip(1)
    assert terms_of([term], output(student), output(teacher))["distill/kl"] > 0.01


def test_a_different_number_of_levels_is_named():
    term = Term("kl", PixelWise(), 1.0, "fpn", "fpn")
    with pytest.raises(ValueError, match=r"kl: .* has 3 levels and .* 2"):
        terms_of([term], output(pyramid()), output(pyramid()[:2]))


def test_mask_and_confidence_come_at_each_levels_size():
    loss = Weighted()
    term = Term("w", loss, 1.0, "fpn", "fpn")
    teacher = output(pyramid())
    teacher.prediction = torch.randn(2, 5, 8, 12)
    mask = torch.ones(2, 32, 48, dtype=torch.bool)
    terms_of([term], output(pyramid()), teacher, mask)
    assert [tuple(shape[-2:]) for shape, _, _ in loss.seen] == list(SIZES)
    assert [tuple(shape[-2:]) for _, shape, _ in loss.seen] == list(SIZES)
    assert [tuple(w.shape) for _, _, w in loss.seen] == [(2, 1, *size) for size in SIZES]
    top = teacher.prediction.softmax(1).amax(1, keepdim=True)
    assert torch.allclose(loss.seen[0][2], top)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_loss_may_say_at_which_size_it_compares(reverse):
    """Both maps come to it as they are, the mask at that size."""
    student, teacher = pyramid(seed=0)[1], pyramid(seed=1)[0]
    if reverse:
        student, teacher = teacher, student
    mask = torch.rand(2, 32, 48, generator=torch.Generator().manual_seed(0)) > 0.3
    term = Term("kl", PixelWise(size=[16, 24]), 1.0, "fpn", "fpn")
    value = terms_of([term], output([student]), output([teacher]), mask)["distill/kl"]
    s, t = (resize_map(x, (16, 24)) for x in (student, teacher))
    expected = PixelWise()(s, t, mask=resize_labels(mask, (16, 24)))
    torch.testing.assert_close(value, expected)


def test_points_are_joined_by_lines():
    ramp = Points([(10, 0.0), (20, 3.0), (30, 1.0)])
    steps = (0, 10, 15, 20, 25, 30, 1000)
    assert [ramp(step) for step in steps] == [0, 0, 1.5, 3, 2, 1, 1]
    assert Points([(0, 2.0)])(7) == 2
    assert repr(ramp) == "[[10, 0.0], [20, 3.0], [30, 1.0]]"


@pytest.mark.parametrize("points", [[], [(0, 1), (0, 2)], [(5, 1), (2, 1)], [(0, -1)], [(-1, 1)]])
def test_points_that_are_no_schedule(points):
    with pytest.raises(ValueError, match="rising steps"):
        Points(points)
