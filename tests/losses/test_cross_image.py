"""CIRKD within the batch by golden values and by the matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import CrossImage, cross_image
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
    return cross_image(s, t, temperature=0.5, mask=mask)


def pooled(s, t, mask, labels):
    return cross_image(s, t, temperature=0.5, granularity=2, mask=mask)


def test_golden():
    check_golden(cross_image, "cross_image.cirkd.tau0.1", "feature")


def by_the_matrices(student, teacher, tau):
    s, t = (F.normalize(x, dim=1).flatten(2) for x in (student, teacher))
    total = 0.0
    for m in range(len(s)):
        for n in range(len(s)):
            rows = F.kl_div(
                (s[m].T @ s[n] / tau).log_softmax(1),
                (t[m].T @ t[n] / tau).softmax(1),
                reduction="batchmean",
            )
            total = total + rows / len(s) ** 2
    return total


def test_by_the_matrices():
    student, teacher, _ = maps(n=3, teacher_c=8)
    torch.testing.assert_close(
        cross_image(student, teacher), by_the_matrices(student, teacher, 0.1)
    )
    s, t = (F.avg_pool2d(x, 4, ceil_mode=True) for x in (student, teacher))
    torch.testing.assert_close(
        cross_image(student, teacher, granularity=4), by_the_matrices(s, t, 0.1)
    )


def test_batch_one_is_compared_with_itself():
    student, teacher, _ = maps(n=1)
    torch.testing.assert_close(
        cross_image(student, teacher), by_the_matrices(student, teacher, 0.1)
    )


def test_slices_change_nothing():
    # 2 images of 40×40 places: 10 million similarities, five slices.
    student, teacher, _ = maps(n=2, c=4, h=40, w=40)
    value = cross_image(student, teacher)
    value.backward()
    sliced = student.grad
    student.grad = None
    whole = by_the_matrices(student, teacher, 0.1)
    whole.backward()
    torch.testing.assert_close(value, whole)
    assert (sliced - student.grad).norm() <= 1e-5 * sliced.norm()


def test_house_rules():
    check_house_rules(loss)
    check_house_rules(pooled)


def test_gradcheck():
    check_gradient(loss)


sizes = st.integers(1, 4)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 3), c=sizes, h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)
    check_batch_size(pooled, n, c, h, w, seed)


def test_an_image_without_valid_pixels_is_none():
    student, teacher, _ = maps(n=3)
    mask = torch.ones(3, 6, 7, dtype=torch.bool)
    mask[1] = False
    torch.testing.assert_close(
        cross_image(student, teacher, mask=mask), cross_image(student[[0, 2]], teacher[[0, 2]])
    )


def test_compile():
    student, teacher, _ = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(cross_image, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, mask=mask), cross_image(student, teacher, mask=mask)
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    term = CrossImage(temperature=0.5, granularity=2)
    assert torch.equal(
        term(student, teacher), cross_image(student, teacher, temperature=0.5, granularity=2)
    )
    assert repr(term) == "CrossImage(temperature=0.5, granularity=2)"


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="temperature is -1"):
        CrossImage(temperature=-1)
    with pytest.raises(ValueError, match="granularity is 0"):
        CrossImage(granularity=0)
    with pytest.raises(ValueError, match="agree in batch and in map size"):
        cross_image(student, teacher[..., :4])
