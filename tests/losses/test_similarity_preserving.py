"""SPKD by hand values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import SimilarityPreserving, scale_between, similarity_preserving
from tests.losses.house_rules import (
    check_batch_size,
    check_gradient,
    check_house_rules,
    check_map_size,
    check_mask_is_a_selection,
    maps,
)


def loss(s, t, mask, labels):
    return similarity_preserving(s, t, mask=mask)


def test_value_by_hand():
    # The student's images are at right angles: rows (1, 0) and (0, 1). The teacher's are one: rows (√½, √½) twice.
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    teacher = torch.ones(2, 3, 1, 2)
    row = (1 - 0.5**0.5) ** 2 + 0.5
    assert similarity_preserving(student, teacher).item() == pytest.approx(row, rel=1e-6)
    paper = similarity_preserving(student, teacher, convention="paper")
    assert paper.item() == pytest.approx(2 * row / 2**2, rel=1e-6)


def test_by_the_equation():
    student, teacher, _ = maps(n=4, teacher_c=8)
    grams = [x.flatten(1) @ x.flatten(1).T for x in (student, teacher)]
    s, t = (torch.nn.functional.normalize(g, dim=1) for g in grams)
    torch.testing.assert_close(
        similarity_preserving(student, teacher, convention="paper"), (s - t).square().sum() / 16
    )


def test_the_scale_of_features_does_not_count():
    student, teacher, _ = maps(n=3)
    value = similarity_preserving(student, teacher)
    for factor in (1e-6, 1e6):
        torch.testing.assert_close(similarity_preserving(factor * student, teacher), value)


def test_conventions_translate():
    student, teacher, _ = maps(n=3)
    factor = scale_between("similarity_preserving", "paper", "mean", student, teacher)
    assert factor == pytest.approx(3, rel=1e-5)


def test_an_image_without_valid_pixels_is_none():
    student, teacher, _ = maps(n=3)
    mask = torch.ones(3, 6, 7, dtype=torch.bool)
    mask[1] = False
    for convention in ("mean", "paper"):
        torch.testing.assert_close(
            similarity_preserving(student, teacher, mask=mask, convention=convention),
            similarity_preserving(student[[0, 2]], teacher[[0, 2]], convention=convention),
        )


def test_house_rules():
    check_house_rules(loss, least_batch=2)


def test_gradcheck():
    check_gradient(loss, n=3)


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 5), c=sizes, h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)


def test_compile():
    student, teacher, _ = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(similarity_preserving, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), similarity_preserving(student, teacher, mask=mask)
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    term = SimilarityPreserving(convention="paper")
    assert torch.equal(
        term(student, teacher), similarity_preserving(student, teacher, convention="paper")
    )
    assert repr(term) == "SimilarityPreserving(convention='paper')"


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="batch of one image has no similarities"):
        similarity_preserving(student[:1], teacher[:1])
    with pytest.raises(ValueError, match="choose one of 'mean', 'paper'"):
        SimilarityPreserving(convention="b2")
    with pytest.raises(ValueError, match="agree in batch and in map size"):
        similarity_preserving(student, teacher[..., :4])
