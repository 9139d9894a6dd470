"""DKD by golden and hand values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import Decoupled, decoupled, pixel_wise
from densekd.ops.resize import resize_labels
from tests.golden_rule import load_golden
from tests.losses.house_rules import (
    check_batch_size,
    check_gradient,
    check_house_rules,
    check_map_size,
    check_mask_is_a_selection,
    maps,
)


def loss(s, t, mask, labels):
    return decoupled(s, t, labels, temperature=2.0, beta=3.0, mask=mask)


def test_golden():
    inputs, golden = load_golden("seed_losses"), load_golden("zoo_losses")
    student, teacher = (
        inputs[f"logits_{side}"].movedim(1, -1).reshape(-1, 19)[:500].T.reshape(1, 19, 1, 500)
        for side in ("student", "teacher")
    )
    student = student.clone().requires_grad_()
    labels = golden["dkd.labels"].view(1, 1, 500)
    value = decoupled(student, teacher, labels, alpha=1.0, beta=1.0, temperature=1.0)
    value.backward()
    row = "dkd.mmrazor.first500"
    torch.testing.assert_close(value.detach(), golden[f"{row}.loss"], rtol=1e-5, atol=0)
    expected = golden[f"{row}.grad"]
    assert (student.grad[0, :, 0].T - expected).norm() / expected.norm() <= 1e-4


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_value_by_hand():
    # Three classes, the true one first. Teacher (1/2, 3/8, 1/8), student (1/4, 1/4, 1/2).
    teacher = torch.tensor([0.5, 0.375, 0.125]).log().view(1, 3, 1, 1)
    student = torch.tensor([0.25, 0.25, 0.5]).log().view(1, 3, 1, 1)
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    target = kl((0.5, 0.5), (0.25, 0.75))
    others = kl((0.75, 0.25), (1 / 3, 2 / 3))
    value = decoupled(student, teacher, labels, alpha=2.0, beta=5.0, temperature=1.0)
    assert value.item() == pytest.approx(2 * target + 5 * others, rel=1e-6)
    doubled = decoupled(2 * student, 2 * teacher, labels, alpha=2.0, beta=5.0, temperature=2.0)
    assert doubled.item() == pytest.approx(4 * value.item(), rel=1e-6)


def test_the_parts_make_up_pixel_wise():
    # At one pixel: KL = target part + (the teacher's probability of the other classes) · others part.
    student, teacher, labels = maps(n=1, h=1, w=1)
    rest = 1 - teacher.softmax(1)[0, labels.item(), 0, 0].item()
    value = decoupled(student, teacher, labels, alpha=1.0, beta=rest, temperature=1.0)
    torch.testing.assert_close(value, pixel_wise(student, teacher))


def test_ignored_pixels_and_numbers_that_are_no_class_do_not_count():
    student, teacher, labels = maps()
    labels[0, 0, :3] = torch.tensor([255, 5, -1])
    counted = torch.ones(2, 6, 7, dtype=torch.bool)
    counted[0, 0, :3] = False
    masked = decoupled(student, teacher, labels.clamp(0, 4), mask=counted)
    torch.testing.assert_close(decoupled(student, teacher, labels), masked)
    nothing = decoupled(student, teacher, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_labels_of_another_size_are_resized():
    student, teacher, _ = maps()
    labels = torch.randint(0, 5, (2, 13, 15))
    small = resize_labels(labels, (6, 7))
    assert torch.equal(decoupled(student, teacher, labels), decoupled(student, teacher, small))


def test_sure_answers_stay_finite():
    student = torch.zeros(1, 3, 1, 1)
    student[0, 0] = 1e4
    student.requires_grad_()
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    decoupled(student, -student.detach(), labels, temperature=1.0).backward()
    assert student.grad.isfinite().all()


def test_house_rules():
    check_house_rules(loss)


def test_gradcheck():
    check_gradient(loss)


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=st.integers(2, 5), h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)


def test_compile():
    student, teacher, labels = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(decoupled, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, labels, mask=mask),
        decoupled(student, teacher, labels, mask=mask),
    )


def test_module_stores_its_arguments():
    student, teacher, labels = maps()
    options = {"alpha": 2.0, "beta": 0.5, "temperature": 3.0, "ignore_index": 1}
    term = Decoupled(**options)
    assert term.wants.targets
    assert torch.equal(
        term(student, teacher, targets=labels), decoupled(student, teacher, labels, **options)
    )
    assert repr(term) == "Decoupled(alpha=2.0, beta=0.5, temperature=3.0)"


def test_exceptions():
    student, teacher, labels = maps()
    with pytest.raises(ValueError, match="beta is -1"):
        Decoupled(beta=-1)
    with pytest.raises(ValueError, match="both 0"):
        Decoupled(alpha=0, beta=0)
    with pytest.raises(ValueError, match="labels are missing"):
        Decoupled()(student, teacher)
    with pytest.raises(ValueError, match=r"labels are torch.int64 of shape \(1, 6, 7\)"):
        decoupled(student, teacher, labels[:1])
    with pytest.raises(ValueError, match="at least two"):
        decoupled(student[:, :1], teacher[:, :1], labels)
