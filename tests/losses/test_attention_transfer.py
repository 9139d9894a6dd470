"""AT by golden and hand values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import AttentionTransfer, attention_transfer, scale_between
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
    return attention_transfer(s, t, mask=mask)


def test_golden():
    check_golden(
        lambda s, t: attention_transfer(s, t, convention="cirkd"), "attention.cirkd", "feature"
    )


def test_value_by_hand():
    # Activities (9, 16) and (1, 0) at two places: (0.49, 0.87) and (1, 0) at length 1.
    student = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(1, 2, 1, 2)
    length = (9**2 + 16**2) ** 0.5
    expected = (9 / length - 1) ** 2 + (16 / length) ** 2
    assert attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    cirkd = attention_transfer(student, teacher, convention="cirkd")
    assert cirkd.item() == pytest.approx(expected / 2, rel=1e-6)


def test_the_scale_of_features_does_not_count():
    student, teacher, _ = maps(teacher_c=8)
    value = attention_transfer(student, teacher)
    for factor in (1e-6, 1e6):
        torch.testing.assert_close(attention_transfer(factor * student, teacher), value)


def test_conventions_translate():
    student, teacher, _ = maps()
    factor = scale_between("attention_transfer", "cirkd", "paper", student, teacher)
    assert factor == pytest.approx(42, rel=1e-5)


def test_house_rules():
    check_house_rules(loss)


def test_gradcheck():
    check_gradient(loss)


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=sizes, h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)


def test_compile():
    student, teacher, _ = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(attention_transfer, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), attention_transfer(student, teacher, mask=mask)
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    term = AttentionTransfer(convention="cirkd")
    assert torch.equal(
        term(student, teacher), attention_transfer(student, teacher, convention="cirkd")
    )
    assert repr(term) == "AttentionTransfer(convention='cirkd')"


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="'cirk'; choose one of 'paper', 'cirkd'"):
        AttentionTransfer(convention="cirk")
    with pytest.raises(ValueError, match="agree in batch and in map size"):
        attention_transfer(student, teacher[..., :4])
