"""DIST by golden and hand values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import Dist, dist
from tests.losses.house_rules import (
    check_batch_size,
    check_golden,
    check_gradient,
    check_house_rules,
    check_map_size,
    check_mask_is_a_selection,
    maps,
)


def loss(s, t, mask, labels):
    return dist(s, t, mask=mask)


def test_golden():
    check_golden(dist, "dist.official", "logits")


def test_by_numpys_correlations():
    student, teacher, _ = maps(n=2, c=4, h=3, w=5)
    s, t = (
        (x.detach() / 2).softmax(1).movedim(1, -1).reshape(-1, 4).double().numpy()
        for x in (student, teacher)
    )
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])
    value = dist(student, teacher, temperature=2.0, inter_weight=3.0, intra_weight=0.5)
    assert value.item() == pytest.approx(4 * (3 * inter + 0.5 * intra), rel=1e-5)


def test_batch_one_correlates_over_its_pixels():
    student, teacher, _ = maps(n=1)
    dist(student, teacher, inter_weight=0.0).backward()
    assert student.grad.abs().sum() > 1e-3


def test_a_student_that_ranks_alike_is_forgiven():
    # Two classes: p and 1 - p, so that any two pixels' probabilities correlate with 1 or -1 over classes.
    teacher = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
    assert dist(teacher / 10, teacher, intra_weight=0.0).abs() < 1e-5
    assert dist(-teacher, teacher, intra_weight=0.0).item() == pytest.approx(2.0)


def test_house_rules():
    check_house_rules(loss)


def test_a_student_that_says_nothing_yet_has_a_bounded_gradient():
    student = torch.zeros(2, 5, 6, 7, requires_grad=True)
    dist(student, maps()[1]).backward()
    assert 0 < student.grad.abs().max() < 1e4


def test_gradcheck():
    check_gradient(loss)


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=st.integers(2, 5), h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)


def test_compile():
    student, teacher, _ = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(dist, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), dist(student, teacher, mask=mask)
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    options = {"inter_weight": 2.0, "intra_weight": 0.0, "temperature": 3.0}
    assert torch.equal(Dist(**options)(student, teacher), dist(student, teacher, **options))
    assert repr(Dist()) == "Dist(inter_weight=1.0, intra_weight=1.0, temperature=1.0)"


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="intra_weight is -1"):
        Dist(intra_weight=-1)
    with pytest.raises(ValueError, match="both 0"):
        Dist(inter_weight=0, intra_weight=0)
    with pytest.raises(ValueError, match="at least two classes"):
        dist(student[:, :1], teacher[:, :1])
    with pytest.raises(ValueError, match="has 5 classes and teacher"):
        dist(student, teacher[:, :4])
