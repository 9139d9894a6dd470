"""IFVD by golden and hand values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import IntraClass, intra_class, scale_between
from densekd.ops.resize import resize_labels
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
    return intra_class(s, t, labels % 3, num_classes=3, mask=mask)


@pytest.mark.parametrize(
    ("row", "file", "key"),
    [
        ("ifvd.cirkd", "seed_losses", "target"),
        ("ifvd.cirkd.no_ignore", "zoo_losses", "target_no_ignore"),
    ],
)
def test_golden(row, file, key):
    labels = load_golden(file)[key]
    check_golden(
        lambda s, t: intra_class(s, t, labels, num_classes=19, convention="cirkd"), row, "feature"
    )


def test_the_papers_mean_agrees_where_no_pixel_is_ignored():
    # On labels of the map's size the two conventions resize nothing, and differ by the ignored pixels alone.
    labels = load_golden("zoo_losses")["target_no_ignore"]
    small = F.interpolate(labels[:, None].float(), size=(32, 40), mode="nearest")[:, 0].long()
    check_golden(
        lambda s, t: intra_class(s, t, small, num_classes=19), "ifvd.cirkd.no_ignore", "feature"
    )


def test_value_by_hand():
    # Two pixels of one class, features (1, 0) and (0, 1): the prototype is their mean, and both cosines are √½.
    # The teacher's are equal, cosines 1. A third pixel is ignored, whatever it holds.
    student = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, -9.0]]).view(1, 2, 1, 3)
    teacher = torch.ones(1, 2, 1, 3)
    labels = torch.tensor([[[4, 4, 255]]])
    value = intra_class(student, teacher, labels)
    assert value.item() == pytest.approx((1 - 0.5**0.5) ** 2, rel=1e-5)
    cirkd = intra_class(student, teacher, labels, convention="cirkd")
    assert cirkd.item() == pytest.approx(2 / 3 * (1 - 0.5**0.5) ** 2, rel=1e-5)
    assert scale_between(
        "intra_class", "cirkd", "paper", student, teacher, labels=labels
    ) == pytest.approx(1.5, rel=1e-5)


def test_ignored_pixels_are_in_no_prototype():
    student, teacher, labels = maps()
    labels[:, :2] = 255
    value = intra_class(student, teacher, labels)
    spoiled = student.detach().clone()
    spoiled[:, :, :2] = 1e3 * torch.randn(2, 5, 2, 7)
    torch.testing.assert_close(intra_class(spoiled, teacher, labels), value)
    student.grad = None
    value.backward()
    assert (student.grad[:, :, :2] == 0).all()


def test_each_image_has_its_own_prototypes():
    student, teacher, labels = maps()
    both = intra_class(student, teacher, labels)
    single = [intra_class(*(x[i : i + 1] for x in (student, teacher, labels))) for i in (0, 1)]
    torch.testing.assert_close(both, torch.stack(single).mean())


def test_labels_of_another_size_and_widths_that_differ():
    student, teacher, _ = maps(teacher_c=8)
    labels = torch.randint(0, 5, (2, 13, 15))
    small = resize_labels(labels, (6, 7))
    assert torch.equal(intra_class(student, teacher, labels), intra_class(student, teacher, small))


def test_only_ignored_labels_give_zero_with_a_graph():
    student, teacher, labels = maps()
    for convention in ("paper", "cirkd"):
        student.grad = None
        value = intra_class(student, teacher, torch.full_like(labels, 255), convention=convention)
        value.backward()
        assert value == 0
        assert torch.equal(student.grad, torch.zeros_like(student))


def test_house_rules():
    check_house_rules(loss)


def test_gradcheck():
    check_gradient(lambda s, t, mask, labels: intra_class(s, t, labels % 2, mask=mask))


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=sizes, h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)


def test_compile():
    student, teacher, labels = maps()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(intra_class, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, labels, num_classes=5, mask=mask),
        intra_class(student, teacher, labels, num_classes=5, mask=mask),
    )


def test_module_stores_its_arguments():
    student, teacher, labels = maps()
    options = {"num_classes": 4, "ignore_index": 1, "convention": "cirkd"}
    term = IntraClass(**options)
    assert term.wants.targets
    assert not hasattr(term, "adapter")
    assert torch.equal(
        term(student, teacher, targets=labels), intra_class(student, teacher, labels, **options)
    )
    assert repr(term) == "IntraClass(num_classes=4, convention='cirkd')"


def test_exceptions():
    student, teacher, labels = maps()
    with pytest.raises(ValueError, match="num_classes is 0"):
        IntraClass(num_classes=0)
    with pytest.raises(ValueError, match="choose one of 'paper', 'cirkd'"):
        IntraClass(convention="ifvd")
    for convention in ("paper", "cirkd"):
        with pytest.raises(ValueError, match="labels are missing"):
            IntraClass(convention=convention)(student, teacher)
    with pytest.raises(ValueError, match=r"labels are torch\.float32"):
        intra_class(student, teacher, labels.float())
