"""Affinity by class by hand values and by the matrices that are never made."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import ClassAffinity, class_affinity
from tests.losses.house_rules import (
    check_batch_size,
    check_gradient,
    check_house_rules,
    check_map_size,
    check_mask_is_a_selection,
    maps,
)


def loss(s, t, mask, labels):
    return class_affinity(s, t, mask=mask)


def plain(s, t, mask, labels):
    return class_affinity(s, t, activation="none", mask=mask)


def test_value_by_hand():
    # Directions (1, 0) and (0.6, 0.8): 2 (1 - cos²) = 2 (1 - 0.36).
    student = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    teacher = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    value = class_affinity(student, teacher, activation="none")
    assert value.item() == pytest.approx(2 * (1 - 0.36), rel=1e-6)
    assert class_affinity(-teacher, teacher, activation="none").abs() < 1e-6


def test_by_the_matrices():
    student, teacher, _ = maps()
    affinities = []
    for x in (student, teacher):
        u = torch.nn.functional.normalize(x.softmax(1).flatten(2), dim=2)  # (N, C, h·w)
        affinities.append(u[..., :, None] * u[..., None, :])  # (N, C, h·w, h·w)
    expected = (affinities[0] - affinities[1]).square().sum(dim=(2, 3)).mean()
    torch.testing.assert_close(class_affinity(student, teacher), expected)


def test_nearly_equal_maps_keep_their_digits():
    _, teacher, _ = maps(dtype=torch.float64)
    student = teacher + 1e-4 * torch.randn(teacher.shape, dtype=torch.float64)
    exact = class_affinity(student, teacher)
    half = class_affinity(student.float(), teacher.float())
    assert half.item() == pytest.approx(exact.item(), rel=1e-2)
    assert exact < 1e-7


def test_house_rules():
    check_house_rules(loss)
    check_house_rules(plain)


def test_gradcheck():
    check_gradient(loss)
    check_gradient(plain)


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=st.integers(2, 5), h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)
        check(plain, n, c, h, w, seed)


def test_compile():
    student, teacher, _ = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(class_affinity, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), class_affinity(student, teacher, mask=mask)
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    term = ClassAffinity(activation="none")
    assert torch.equal(term(student, teacher), class_affinity(student, teacher, activation="none"))
    assert repr(term) == "ClassAffinity(activation='none')"


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="choose one of 'softmax', 'none'"):
        ClassAffinity(activation="sigmoid")
    with pytest.raises(ValueError, match="take activation 'none'"):
        class_affinity(student[:, :1], teacher[:, :1])
    with pytest.raises(ValueError, match="has 5 classes and teacher"):
        class_affinity(student, teacher[:, :4])
