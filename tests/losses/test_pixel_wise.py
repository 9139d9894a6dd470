from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import PixelWise, pixel_wise
from densekd.losses._upsampled import bands_pay
from densekd.ops.resize import resize_map
from tests.golden_rule import load_golden

CONVENTIONS = ("paper", "authors", "ifvd", "cirkd", "mmrazor")


def pair(n=2, c=5, h=6, w=7, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(n, c, h, w, generator=g, dtype=dtype)
    return student.requires_grad_(), torch.randn(n, c, h, w, generator=g, dtype=dtype)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_smoke(convention):
    student, teacher = pair()
    teacher.requires_grad_()
    loss = pixel_wise(student, teacher, convention=convention)
    loss.backward()
    assert loss.shape == ()
    assert loss > 0
    assert student.grad.isfinite().all()
    assert teacher.grad is None
    assert torch.equal(PixelWise(convention=convention)(student, teacher), loss)


def test_value_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2).
    teacher = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1, 1)
    loss = pixel_wise(torch.zeros(1, 2, 1, 1), teacher)
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    # At T = 2 the same distributions come from doubled logits, and T² = 4 multiplies.
    doubled = pixel_wise(torch.zeros(1, 2, 1, 1), 2 * teacher, temperature=2.0)
    assert doubled.item() == pytest.approx(4 * loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("file", "row", "convention", "temperature"),
    [
        ("seed_losses", "pixel_wise", "authors", 1),
        ("zoo_losses", "pixel_wise.cirkd.T1", "cirkd", 1),
        ("zoo_losses", "pixel_wise.cirkd.T4", "cirkd", 4),
        ("zoo_losses", "pixel_wise.ifvd.T1", "ifvd", 1),
        ("zoo_losses", "pixel_wise.mmrazor.T1", "mmrazor", 1),
        ("zoo_losses", "pixel_wise.mmrazor.T4", "mmrazor", 4),
    ],
)
def test_golden(file, row, convention, temperature):
    inputs, golden = load_golden("seed_losses"), load_golden(file)
    student = inputs["logits_student"].requires_grad_()
    loss = pixel_wise(
        student, inputs["logits_teacher"], temperature=temperature, convention=convention
    )
    loss.backward()
    expected = golden[f"{row}.grad"]
    torch.testing.assert_close(loss, golden[f"{row}.loss"], rtol=1e-5, atol=0)
    assert (student.grad - expected).norm() / expected.norm() <= 1e-4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"convention": "paperr"}, "'paperr'; choose one of 'paper'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 2.0, "convention": "authors"}, "knows only 1"),
        ({"form": "softplus"}, "'softplus'; choose one of 'softmax'"),
        ({"form": "sigmoid", "convention": "cirkd"}, "takes 'paper' alone"),
        ({"form": "regression", "temperature": 2.0}, "no distribution to soften"),
        ({"form": "sigmoid", "size": (9, 9)}, "size is for form 'softmax'"),
        ({"size": 9}, "size is 9; give a height and a width"),
        ({"size": (9, 0)}, r"size is \(9, 0\)"),
        ({"size": [9, 9, 9]}, "give a height and a width"),
    ],
)
def test_exception_arguments(kwargs, message):
    student, teacher = pair()
    with pytest.raises(ValueError, match=message):
        pixel_wise(student, teacher, **kwargs)
    with pytest.raises(ValueError, match=message):
        PixelWise(**kwargs)


def test_exception_shapes():
    student, teacher = pair()
    with pytest.raises(ValueError, match="resize one of them"):
        pixel_wise(student, teacher[..., :-1])
    with pytest.raises(ValueError, match="same classes"):
        pixel_wise(student, teacher[:, :-1])
    with pytest.raises(ValueError, match="floating"):
        pixel_wise(student[0], teacher[0])
    with pytest.raises(ValueError, match=r"expected torch.bool of shape \(2, 6, 7\)"):
        pixel_wise(student, teacher, mask=torch.ones(2, 6, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask is torch.int64"):
        pixel_wise(student, teacher, mask=torch.ones(2, 6, 7, dtype=torch.long))


def test_exception_shapes_with_a_size():
    student, teacher = pair()
    with pytest.raises(ValueError, match="must agree in batch and classes"):
        pixel_wise(student, teacher[:, :-1], size=(9, 9))
    with pytest.raises(ValueError, match=r"expected torch.bool of shape \(2, 9, 8\)"):
        pixel_wise(student, teacher, size=(9, 8), mask=torch.ones(2, 6, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="a softmax over one channel"):
        pixel_wise(student[:, :1], teacher[:, :1], size=(9, 9))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("size", [(6, 7), (13, 9), (3, 4), (5, 20)])
def test_size_is_that_of_maps_resized_before(convention, size):
    """Also `test_upsampled.py`, where the maps are large."""
    student, teacher = pair()[0], pair(h=4, w=9, seed=1)[1]
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(1)) > 0.5
    loss = pixel_wise(student, teacher, convention=convention, size=size, mask=mask)
    resized = (resize_map(x, size) for x in (student, teacher))
    torch.testing.assert_close(loss, pixel_wise(*resized, convention=convention, mask=mask))
    stored = PixelWise(convention=convention, size=list(size))  # as YAML gives it
    assert torch.equal(stored(student, teacher, mask=mask), loss)
    assert f"size={size}" in repr(stored)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_all_masked_is_a_finite_zero_with_a_graph(convention):
    student, teacher = pair(n=1)
    loss = pixel_wise(
        student, teacher, mask=torch.zeros(1, 6, 7, dtype=torch.bool), convention=convention
    )
    loss.backward()
    assert loss == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_mask_keeps_the_factor_between_conventions(convention):
    student, teacher = pair()
    mask = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(1)) > 0.5
    mean = pixel_wise(student, teacher, mask=mask)
    scaled = pixel_wise(student, teacher, mask=mask, convention=convention)
    if convention == "authors":
        log_t = teacher.log_softmax(1)
        entropy = -(log_t.exp() * log_t).sum(1)[mask].mean()
        torch.testing.assert_close(scaled, 2 * (mean + entropy))
    else:
        factor = {"paper": 1, "cirkd": 1, "ifvd": 1 / 5, "mmrazor": 42}[convention]
        torch.testing.assert_close(scaled, mean * factor)


def test_gradcheck():
    student, teacher = pair(n=1, c=3, h=2, w=3, dtype=torch.float64)
    mask = torch.tensor([[[True, True, False], [True, False, True]]])
    for convention in CONVENTIONS:
        torch.autograd.gradcheck(
            lambda s, c=convention: pixel_wise(s, teacher, mask=mask, convention=c), student
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    student = (1e4 * torch.randn(1, 5, 65, 65)).to(dtype).requires_grad_()
    loss = pixel_wise(student, (1e4 * torch.randn(1, 5, 65, 65)).to(dtype))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.slow
def test_compile():
    student, teacher = pair()
    mask = torch.rand(2, 6, 7) > 0.5
    compiled = torch.compile(pixel_wise, fullgraph=True)
    torch.testing.assert_close(
        compiled(student, teacher, temperature=4.0, mask=mask),
        pixel_wise(student, teacher, temperature=4.0, mask=mask),
    )


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(
    n=sizes, c=st.integers(2, 5), h=sizes, w=sizes, seed=st.integers(0, 100), t=st.floats(0.5, 8)
)
def test_properties(n, c, h, w, seed, t):
    student, teacher = pair(n, c, h, w, seed)
    student = student.detach()
    loss = pixel_wise(student, teacher, temperature=t)
    close = {"rtol": 1e-4, "atol": 1e-6}
    assert loss >= -1e-6
    assert pixel_wise(teacher, teacher, temperature=t).abs() < 1e-6
    twice = pixel_wise(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), temperature=t)
    torch.testing.assert_close(twice, loss, **close)
    tiled = pixel_wise(student.repeat(1, 1, 2, 3), teacher.repeat(1, 1, 2, 3), temperature=t)
    torch.testing.assert_close(tiled, loss, **close)
    order = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        pixel_wise(student[:, order], teacher[:, order], temperature=t), loss, **close
    )


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=st.integers(2, 5), h=sizes, w=sizes, seed=st.integers(0, 100))
def test_mask_is_as_if_only_valid_pixels_were_there(n, c, h, w, seed):
    student, teacher = pair(n, c, h, w, seed)
    mask = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[0, 0, 0] = True
    rows = [x.movedim(1, -1)[mask].t()[None, :, None] for x in (student, teacher)]  # (1, C, 1, M)
    torch.testing.assert_close(
        pixel_wise(student, teacher, mask=mask), pixel_wise(*rows), rtol=1e-4, atol=1e-6
    )


# --- the other forms --------------------------------------------------------------------------------------------------


def positive(x):
    return (x.detach().exp() + 0.1).requires_grad_(x.requires_grad)


def test_sigmoid_form_by_torchs_own_divergence():
    student, teacher = pair()
    t = 3.0
    loss = pixel_wise(student, teacher, form="sigmoid", temperature=t)
    bernoulli = torch.distributions.Bernoulli
    each = torch.distributions.kl_divergence(
        bernoulli(logits=teacher / t), bernoulli(logits=student / t)
    )
    torch.testing.assert_close(loss, t**2 * each.sum(1).mean())


def test_sigmoid_form_stays_finite_where_both_are_sure():
    student = torch.full((1, 2, 3, 3), 200.0, requires_grad=True)
    loss = pixel_wise(student, -student.detach(), form="sigmoid")
    loss.backward()
    assert loss.item() == pytest.approx(400.0)  # two classes, each 200 nats apart
    assert student.grad.isfinite().all()


def test_regression_form_by_hand():
    student = torch.full((2, 1, 3, 4), 2.0)
    teacher = torch.full((2, 1, 3, 4), 1.0)
    teacher[1] = 4.0
    loss = pixel_wise(student, teacher, form="regression")
    assert loss.item() == pytest.approx(math.log(2.0))
    # A factor on both changes nothing: what counts is the ratio.
    torch.testing.assert_close(pixel_wise(3 * student, 3 * teacher, form="regression"), loss)


def test_regression_form_wants_positive_maps():
    student, teacher = pair()
    with pytest.raises(ValueError, match="positive maps"):
        pixel_wise(student, teacher, form="regression")


@pytest.mark.parametrize("form", ["sigmoid", "regression"])
def test_other_forms_hold_the_house_rules(form):
    student, teacher = pair()
    if form == "regression":
        student, teacher = positive(student), positive(teacher)
    assert pixel_wise(teacher, teacher, form=form).item() == pytest.approx(0, abs=1e-6)
    mask = torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[:, :4, :5] = True
    inside = pixel_wise(student[..., :4, :5], teacher[..., :4, :5], form=form)
    spoiled = teacher.clone()
    spoiled[..., 5, 6] = -1.0  # what is masked may be anything
    torch.testing.assert_close(pixel_wise(student, spoiled, form=form, mask=mask), inside)
    doubled = pixel_wise(torch.cat([student] * 2), torch.cat([teacher] * 2), form=form)
    torch.testing.assert_close(doubled, pixel_wise(student, teacher, form=form))
    none = pixel_wise(student, teacher, form=form, mask=torch.zeros_like(mask))
    none.backward()
    assert none == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("form", ["sigmoid", "regression"])
def test_gradcheck_of_other_forms(form):
    torch.manual_seed(0)
    student = (torch.randn(1, 2, 3, 3, dtype=torch.float64).exp() + 0.2).requires_grad_()
    teacher = torch.randn(1, 2, 3, 3, dtype=torch.float64).exp() + 0.3
    assert torch.autograd.gradcheck(lambda s: pixel_wise(s, teacher, form=form), (student,))


def test_class_weights_by_hand():
    student, teacher = torch.randn(2, 3, 2, 4), 3 * torch.randn(2, 3, 2, 4)
    weights = torch.tensor([0.2, 3.0, 1.0])
    kl = F.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    at = (teacher.softmax(1) * weights[:, None, None]).sum(1)  # what the teacher expects
    torch.testing.assert_close(
        pixel_wise(student, teacher, class_weights=weights), (kl * at).sum() / at.sum()
    )
    mask = torch.rand(2, 2, 4) > 0.3
    dirty = torch.where(mask[:, None], teacher, float("nan"))
    masked = pixel_wise(student, dirty, mask=mask, class_weights=weights)
    torch.testing.assert_close(masked, (kl * at)[mask].sum() / at[mask].sum())
    # Where a teacher is sure, the weight is that of its class; the factor of all weights cancels.
    sure = F.one_hot(torch.tensor([[[0, 1, 1, 2]]]), 3).movedim(3, 1) * 200.0
    one = torch.randn(1, 3, 1, 4)
    expected = F.cross_entropy(one, sure.argmax(1), weight=weights)
    torch.testing.assert_close(pixel_wise(one, sure, class_weights=weights), expected)
    torch.testing.assert_close(pixel_wise(one, sure, class_weights=5 * weights), expected)


def test_equal_class_weights_change_nothing():
    student, teacher = torch.randn(2, 5, 6, 4), torch.randn(2, 5, 3, 2)
    for more in ({"size": (6, 4)}, {"size": (6, 4), "convention": "cirkd", "temperature": 2.0}):
        torch.testing.assert_close(
            pixel_wise(student, teacher, class_weights=torch.full((5,), 0.7), **more),
            pixel_wise(student, teacher, **more),
        )


def test_class_weights_of_maps_that_would_be_compared_in_bands():
    student, teacher = torch.randn(1, 8, 16, 16), torch.randn(1, 8, 16, 16)
    assert bands_pay(student, (400, 400))
    weighted = pixel_wise(student, teacher, size=(400, 400), class_weights=torch.ones(8))
    torch.testing.assert_close(weighted, pixel_wise(student, teacher, size=(400, 400)))


@pytest.mark.parametrize("weights", [[-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0], [], ["a"], 3.0])
def test_exception_class_weights(weights):
    with pytest.raises(ValueError, match=r"class_weights is .*expected a finite number"):
        PixelWise(class_weights=weights)


def test_exception_class_weights_of_others():
    with pytest.raises(ValueError, match="class_weights are for form 'softmax'"):
        PixelWise(class_weights=[1, 2], form="sigmoid")
    loss = PixelWise(class_weights=[1, 2])
    assert not loss.state_dict()
    with pytest.raises(
        ValueError, match=r"shape \(2,\); expected one weight for each of the 3 classes"
    ):
        loss(torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2))
