"""PKD by golden values and NumPy's correlations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import PearsonFeatures, pearson_features, scale_between
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
    return pearson_features(s, t, mask=mask)


def test_golden():
    check_golden(
        lambda s, t: pearson_features(s, t, convention="mmrazor"), "pkd.mmrazor", "feature"
    )


def test_by_numpys_correlations():
    student, teacher, _ = maps()
    s, t = (x.detach().movedim(1, 0).flatten(1).double().numpy() for x in (student, teacher))
    expected = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    assert pearson_features(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    mmrazor = pearson_features(student, teacher, convention="mmrazor")
    assert mmrazor.item() == pytest.approx(expected * 83 / 84, rel=1e-5)  # M = 2 · 6 · 7


def test_scale_and_shift_of_a_channel_cost_nothing():
    _, teacher, _ = maps()
    scale = torch.tensor([0.1, 1.0, 2.0, 10.0, 100.0]).view(1, 5, 1, 1)
    assert pearson_features(scale * teacher + scale, teacher).abs() < 1e-5


def test_constant_channels():
    student, teacher, _ = maps(c=2)
    student, teacher = student.detach().clone(), teacher.clone()
    student[:, 1] = 3.0
    teacher[:, 1] = -1.0
    both = pearson_features(student, teacher)
    torch.testing.assert_close(both, pearson_features(student[:, :1], teacher[:, :1]) / 2)
    student.requires_grad_()
    for convention in ("paper", "mmrazor"):
        student.grad = None
        pearson_features(student, maps(c=2)[1], convention=convention).backward()
        assert student.grad.isfinite().all()


def test_conventions_translate():
    student, teacher, _ = maps()
    factor = scale_between("pearson_features", "mmrazor", "paper", student, teacher)
    assert factor == pytest.approx(84 / 83, rel=1e-5)


def test_house_rules():
    check_house_rules(loss)
    check_house_rules(
        lambda s, t, mask, labels: pearson_features(s, t, mask=mask, convention="mmrazor")
    )


def test_gradcheck():
    check_gradient(loss)
    check_gradient(
        lambda s, t, mask, labels: pearson_features(s, t, mask=mask, convention="mmrazor")
    )


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=sizes, h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)


def test_compile():
    student, teacher, _ = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(pearson_features, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), pearson_features(student, teacher, mask=mask)
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    term = PearsonFeatures(convention="mmrazor")
    assert term.wants.adapter
    assert torch.equal(
        term(student, teacher), pearson_features(student, teacher, convention="mmrazor")
    )
    assert repr(term) == "PearsonFeatures(convention='mmrazor')"


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="'pkd'; choose one of 'paper', 'mmrazor'"):
        PearsonFeatures(convention="pkd")
    with pytest.raises(ValueError, match="5 channels and teacher 4: put a 1x1"):
        pearson_features(student, teacher[:, :4])
