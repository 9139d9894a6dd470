"""CWD by golden and hand values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import ChannelWise, channel_wise
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
    return channel_wise(s, t, temperature=2.0, mask=mask)


@pytest.mark.parametrize(
    ("row", "temperature"), [("mmrazor.T1", 1), ("mmrazor.T4", 4), ("cirkd.T4", 4)]
)
def test_golden(row, temperature):
    check_golden(
        lambda s, t: channel_wise(s, t, temperature=temperature), f"channel_wise.{row}", "logits"
    )


def test_value_by_hand():
    # One channel over two places: teacher (3/4, 1/4), student (1/2, 1/2).
    teacher = torch.tensor([math.log(3.0), 0.0]).view(1, 1, 1, 2)
    value = channel_wise(torch.zeros(1, 1, 1, 2), teacher, temperature=1.0)
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    # At T = 2 the same distributions come from doubled values, and T² = 4 multiplies.
    doubled = channel_wise(torch.zeros(1, 1, 1, 2), 2 * teacher, temperature=2.0)
    assert doubled.item() == pytest.approx(4 * value.item(), rel=1e-6)


def test_a_constant_on_a_channel_costs_nothing():
    _, teacher, _ = maps()
    shift = torch.arange(5.0).view(1, 5, 1, 1)
    assert channel_wise(teacher + shift, teacher).abs() < 1e-6


def test_probabilities_that_underflow_stay_finite():
    student = torch.tensor([0.0, 500.0]).view(1, 1, 1, 2).requires_grad_()
    value = channel_wise(student, -student.detach(), temperature=1.0)
    value.backward()
    assert value.item() == pytest.approx(500.0)
    assert student.grad.isfinite().all()


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


@pytest.mark.slow
def test_compile():
    student, teacher, _ = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(channel_wise, fullgraph=True)
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), channel_wise(student, teacher, mask=mask)
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    term = ChannelWise(temperature=2.0)
    assert torch.equal(term(student, teacher), channel_wise(student, teacher, temperature=2.0))
    assert repr(term) == "ChannelWise(temperature=2.0)"


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="temperature is 0"):
        ChannelWise(temperature=0)
    with pytest.raises(ValueError, match="5 channels and teacher 4: put a 1x1"):
        channel_wise(student, teacher[:, :4])
    with pytest.raises(ValueError, match="agree in batch and in map size"):
        channel_wise(student, teacher[..., :4])
    with pytest.raises(ValueError, match=r"mask is torch\.float32"):
        channel_wise(student, teacher, mask=torch.ones(2, 6, 7))
