"""LD by hand values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import Localization, localization, scale_between
from tests.losses.house_rules import (
    check_batch_size,
    check_gradient,
    check_house_rules,
    check_map_size,
    check_mask_is_a_selection,
    maps,
)


def loss(s, t, mask, labels):
    return localization(s, t, bins=3, edges=2, temperature=2.0, mask=mask)


def test_value_by_hand():
    # Two edges of two bins: the first (3/4, 1/4) against (1/2, 1/2), the second equal.
    teacher = torch.tensor([math.log(3.0), 0.0, 1.0, 1.0]).view(1, 4, 1, 1)
    student = torch.zeros(1, 4, 1, 1)
    first = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    options = {"bins": 2, "edges": 2}
    value = localization(student, teacher, temperature=1.0, **options)
    assert value.item() == pytest.approx(first, rel=1e-6)
    doubled = localization(student, 2 * teacher, temperature=2.0, **options)
    assert doubled.item() == pytest.approx(4 * first, rel=1e-6)
    mmdet = localization(student, teacher, temperature=1.0, convention="mmdet", **options)
    assert mmdet.item() == pytest.approx(first / 4, rel=1e-6)


def test_mmdetections_mean():
    # A row an edge of a box, elementwise divergence, mean over bins and rows, times T².
    student, teacher, _ = maps(c=8)
    s, t = (x.view(2, 2, 4, 6, 7).movedim(2, -1).reshape(-1, 4) / 3 for x in (student, teacher))
    rows = torch.nn.functional.kl_div(s.log_softmax(1), t.softmax(1), reduction="none").mean(1) * 9
    value = localization(student, teacher, bins=4, edges=2, temperature=3.0, convention="mmdet")
    torch.testing.assert_close(value, rows.mean())


def test_weights_say_which_places_count():
    student, teacher, _ = maps(c=6)
    weight = torch.zeros(2, 1, 6, 7)
    weight[1, 0, 2, 3] = 0.3
    one = localization(
        student[1:, :, 2:3, 3:4], teacher[1:, :, 2:3, 3:4], bins=3, edges=2, temperature=2.0
    )
    weighted = localization(student, teacher, bins=3, edges=2, temperature=2.0, weight=weight)
    torch.testing.assert_close(weighted, one)
    nothing = localization(student, teacher, bins=3, edges=2, weight=torch.zeros(2, 1, 6, 7))
    nothing.backward()
    assert nothing == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_conventions_translate():
    student, teacher, _ = maps(c=6)
    factor = scale_between("localization", "mmdet", "paper", student, teacher, bins=3, edges=2)
    assert factor == pytest.approx(6, rel=1e-5)


def test_house_rules():
    check_house_rules(loss, c=6)


def test_gradcheck():
    check_gradient(loss, c=6)


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, 6, h, w, seed)


def test_compile():
    student, teacher, _ = maps(c=8)
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(localization, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, bins=2, mask=mask),
        localization(student, teacher, bins=2, mask=mask),
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps(c=6)
    options = {"bins": 3, "edges": 2, "temperature": 2.0, "convention": "mmdet"}
    term = Localization(**options)
    assert term.wants.confidence
    weight = torch.rand(2, 1, 6, 7)
    assert torch.equal(
        term(student, teacher, weight=weight),
        localization(student, teacher, weight=weight, **options),
    )
    assert repr(term) == "Localization(bins=3, edges=2, temperature=2.0, convention='mmdet')"


def test_exceptions():
    student, teacher, _ = maps(c=6)
    with pytest.raises(ValueError, match="bins is 1"):
        Localization(bins=1)
    with pytest.raises(ValueError, match="6 channels and teacher 6; expected 4 edges of 17 bins"):
        localization(student, teacher, bins=17)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 6, 7\)"):
        localization(student, teacher, bins=3, edges=2, weight=torch.ones(2, 6, 7))
