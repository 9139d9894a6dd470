"""CSD by golden and hand values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import ChannelAffinity, channel_affinity, scale_between
from tests.golden_rule import load_golden
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
    return channel_affinity(s, t, granularity=1, temperature=0.5, mask=mask)


def pooled(s, t, mask, labels):
    return channel_affinity(s, t, temperature=0.5, mask=mask)


def test_golden():
    # 1.5e-11 is a difference of nearly equal float32 products there: it has about four digits, its gradient three.
    check_golden(
        lambda s, t: channel_affinity(s, t, convention="cirkd"),
        "channel_affinity.cirkd",
        "feature",
        value=5e-5,
        gradient=3e-4,
    )


def test_float32_has_the_digits_of_float64():
    inputs = load_golden("seed_losses")
    results = []
    for dtype in (torch.float32, torch.float64):
        student = inputs["feature_student"].detach().to(dtype, copy=True).requires_grad_()
        value = channel_affinity(student, inputs["feature_teacher"].to(dtype))
        value.backward()
        results.append((value.item(), student.grad.double()))
    (single, gradient), (double, exact) = results
    assert single == pytest.approx(double, rel=1e-5)
    assert (gradient - exact).norm() / exact.norm() < 1e-5


def test_value_by_hand():
    # Two cells, two channels. Student: both channels (1/2, 1/2), so g = 1/2 everywhere. Teacher: (3/4, 1/4) and
    # (1/4, 3/4), so g = 10/16 on the diagonal and 6/16 beside it. Each entry is 1/8 off.
    teacher = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log().view(1, 2, 1, 2)
    student = torch.zeros(1, 2, 1, 2)
    options = {"granularity": 1, "temperature": 1.0}
    cirkd = channel_affinity(student, teacher, convention="cirkd", **options)
    assert cirkd.item() == pytest.approx(1 / 64, rel=1e-6)
    mean = channel_affinity(student, teacher, **options)
    assert mean.item() == pytest.approx(2**2 / 64, rel=1e-6)


def test_cut_cells_average_what_they_have():
    student, teacher, _ = maps(h=5, w=7)
    s, t = (torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True) for x in (student, teacher))
    torch.testing.assert_close(
        channel_affinity(student, teacher), channel_affinity(s, t, granularity=1)
    )


def test_conventions_translate():
    student, teacher, _ = maps()
    factor = scale_between("channel_affinity", "cirkd", "mean", student, teacher)
    assert factor == pytest.approx(12**2, rel=1e-5)


def test_house_rules():
    check_house_rules(loss)
    check_house_rules(pooled)


def test_gradcheck():
    check_gradient(loss)
    check_gradient(pooled, h=2, w=3)


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=sizes, h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)
    check_batch_size(pooled, n, c, h, w, seed)


def test_compile():
    student, teacher, _ = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(channel_affinity, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), channel_affinity(student, teacher, mask=mask)
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    options = {"temperature": 2.0, "granularity": 3, "convention": "cirkd"}
    term = ChannelAffinity(**options)
    assert torch.equal(term(student, teacher), channel_affinity(student, teacher, **options))
    assert repr(term) == "ChannelAffinity(temperature=2.0, granularity=3, convention='cirkd')"


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match=r"granularity is 0\.5; it must be a whole number"):
        ChannelAffinity(granularity=0.5)
    with pytest.raises(ValueError, match="choose one of 'mean', 'cirkd'"):
        ChannelAffinity(convention="paper")
    with pytest.raises(ValueError, match="has 5 classes and teacher"):
        channel_affinity(student, teacher[:, :4])
