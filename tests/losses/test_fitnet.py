"""FitNet's hint is feature mimic without weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import FitNet, feature_mimic, fitnet
from tests.losses.house_rules import (
    check_batch_size,
    check_gradient,
    check_house_rules,
    check_map_size,
    check_mask_is_a_selection,
    maps,
)


def loss(s, t, mask, labels):
    return fitnet(s, t, mask=mask)


def test_value():
    student, teacher, _ = maps()
    torch.testing.assert_close(
        fitnet(student, teacher), torch.nn.functional.mse_loss(student, teacher)
    )
    assert torch.equal(fitnet(student, teacher), feature_mimic(student, teacher))


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
    compiled = torch.compile(fitnet, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), fitnet(student, teacher, mask=mask)
    )


def test_module_asks_for_an_adapter_and_no_confidence():
    student, teacher, _ = maps()
    assert FitNet.wants.adapter
    assert not hasattr(FitNet, "confidence")
    assert torch.equal(FitNet()(student, teacher), fitnet(student, teacher))


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="5 channels and teacher 4: put a 1x1"):
        fitnet(student, teacher[:, :4])
