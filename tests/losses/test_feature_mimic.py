"""Feature mimic by hand values."""

import pytest
import torch

from densekd.losses.feature_mimic import FeatureMimic, feature_mimic
from densekd.losses.wants import Wants


def features(values) -> torch.Tensor:
    """A 1x2 map of two channels: [[place 0], [place 1]] -> (1, 2, 1, 2)."""
    return torch.tensor(values, dtype=torch.float32).T.reshape(1, 2, 1, 2)


STUDENT = features([[1, 2], [0, 4]])
TEACHER = features([[0, 0], [0, 2]])  # squared differences 1, 4 and 0, 4: means 2.5 and 2


def test_by_hand():
    assert feature_mimic(STUDENT, TEACHER) == pytest.approx(2.25)
    weight = torch.tensor([[[[0.75, 0.25]]]])
    assert feature_mimic(STUDENT, TEACHER, weight=weight) == pytest.approx(0.75 * 2.5 + 0.25 * 2)
    # a weighted mean: the size of the weights is of no account
    assert feature_mimic(STUDENT, TEACHER, weight=8 * weight) == pytest.approx(2.375)
    assert feature_mimic(STUDENT, STUDENT, weight=weight) == 0


def test_masked_places_do_not_count():
    mask = torch.tensor([[[False, True]]])
    weight = torch.tensor([[[[0.75, 0.25]]]])
    broken = STUDENT.clone()
    broken[..., 0] = torch.inf
    assert feature_mimic(broken, TEACHER, mask=mask) == 2
    assert feature_mimic(broken, TEACHER, weight=weight, mask=mask) == 2


@pytest.mark.parametrize("nothing", ["mask", "weight"])
def test_nothing_to_compare_is_a_zero_with_a_graph(nothing):
    student = STUDENT.clone().requires_grad_()
    empty = {
        "mask": torch.zeros(1, 1, 2, dtype=torch.bool),
        "weight": torch.zeros(1, 1, 1, 2),
    }
    value = feature_mimic(student, TEACHER, **{nothing: empty[nothing]})
    assert value == 0
    value.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_batch_and_map_size_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 2, 6, 5, 4, generator=generator)
    w = torch.rand(2, 1, 5, 4, generator=generator)
    value = feature_mimic(s, t, weight=w)
    twice = feature_mimic(torch.cat([s, s]), torch.cat([t, t]), weight=torch.cat([w, w]))
    tiled = feature_mimic(s.tile(1, 1, 2, 3), t.tile(1, 1, 2, 3), weight=w.tile(1, 1, 2, 3))
    assert torch.allclose(twice, value)
    assert torch.allclose(tiled, value)


def test_gradient():
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    w = torch.rand(2, 1, 2, 2, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[[True, False], [True, True]]] * 2)
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: feature_mimic(x, t, weight=w, mask=mask), (s,))
    t.requires_grad_()
    w.requires_grad_()
    feature_mimic(s, t, weight=w).backward()
    assert t.grad is None
    assert w.grad is None


def test_half_precision_does_not_overflow():
    s = torch.full((1, 64, 32, 32), 200.0, dtype=torch.float16)
    value = feature_mimic(s, torch.zeros_like(s))
    assert value.dtype == torch.float32
    assert value == 40000


def test_module_asks_for_what_it_needs():
    assert FeatureMimic.wants == Wants(adapter=True, confidence=True)
    weight = torch.tensor([[[[0.75, 0.25]]]])
    assert FeatureMimic()(STUDENT, TEACHER, mask=None, weight=weight) == pytest.approx(2.375)
    assert not list(FeatureMimic().parameters())


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (torch.zeros(1, 3, 1, 2), {}, r"2 channels and teacher 3: put a 1x1"),
        (torch.zeros(1, 2, 2, 2), {}, "agree in batch and in map size"),
        (torch.zeros(1, 2, 1, 2), {"weight": torch.ones(1, 1, 2)}, r"weight has shape \(1, 1, 2\)"),
        (torch.zeros(1, 2, 1, 2), {"mask": torch.ones(1, 1, 2)}, "mask is torch.float32"),
    ],
)
def test_bad_input_is_named(teacher, options, message):
    with pytest.raises(ValueError, match=message):
        feature_mimic(STUDENT, teacher, **options)
