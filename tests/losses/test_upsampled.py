"""Losses in bands of rows against the same losses of logits upsampled whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import _upsampled, cross_entropy, ohem_cross_entropy, pixel_wise
from densekd.ops.resize import resize_map

LOSSES = {
    "cross_entropy": cross_entropy,
    "weighted": lambda x, y: cross_entropy(
        x, y, class_weights=torch.linspace(0.5, 2, x.shape[1]), label_smoothing=0.2
    ),
    "ohem": lambda x, y: ohem_cross_entropy(x, y, threshold=0.3, min_kept=0.2),
}


def batch(n=2, c=4, h=3, w=5, size=(11, 14), seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, h, w, generator=g, dtype=dtype).requires_grad_()
    target = torch.randint(0, c, (n, *size), generator=g)
    target[torch.rand(n, *size, generator=g) < 0.3] = 255
    return logits, target


@pytest.fixture
def bands(monkeypatch):
    """Bands of that many entries."""

    def set_to(entries):
        monkeypatch.setattr(_upsampled, "_BAND", {"cpu": entries})

    set_to(100)
    return set_to


def with_gradient(loss, x, *others):
    value = loss(x, *others)
    return value.detach(), torch.autograd.grad(value, x)[0]


def check_equal(loss, x, *others, **tolerances):
    """In bands, and as if a band had room for all."""
    found = with_gradient(loss, x, *others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_upsampled, "_BAND", {"cpu": 2**62})
        expected = with_gradient(loss, x, *others)
    torch.testing.assert_close(found, expected, **tolerances)
    assert found[0].dtype == expected[0].dtype
    return found


@pytest.fixture
def in_bands(monkeypatch):
    """The bands that were made."""
    seen = []
    upsample = _upsampled._Rows.upsample

    def spy(rows, at):
        seen.append(at)
        return upsample(rows, at)

    monkeypatch.setattr(_upsampled._Rows, "upsample", spy)
    return seen


@pytest.mark.parametrize("entries", [1, 4 * 14, 4 * 14 * 3, 4 * 14 * 11, 4 * 14 * 11 + 1])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_wherever_bands_end(loss, entries, bands, in_bands):
    bands(entries)
    check_equal(loss, *batch(n=3))
    covered = torch.zeros(3, 11, dtype=torch.long)
    for images, rows in in_bands:
        covered[images, rows] += 1
    assert (covered == (2 if loss is LOSSES["ohem"] else 1)).all()  # and none twice in a pass


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    ("own", "size"),
    [
        ((1, 1), (7, 9)),
        ((1, 4), (5, 4)),
        ((4, 1), (4, 6)),
        ((1, 3), (1, 8)),
        ((2, 2), (3, 3)),
        ((5, 6), (6, 6)),
        ((6, 7), (7, 29)),
        ((9, 9), (65, 65)),
    ],
)
def test_sizes(loss, own, size, bands, in_bands):
    check_equal(loss, *batch(1, 4, *own, size))
    assert bool(in_bands) == (4 * size[0] * size[1] > 100)


@pytest.mark.parametrize(("own", "size"), [((8, 9), (8, 9)), ((8, 9), (4, 5)), ((8, 4), (6, 30))])
def test_what_is_not_upsampled_is_left_alone(own, size, bands, in_bands):
    check_equal(cross_entropy, *batch(1, 4, *own, size))
    assert not in_bands


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    c=st.integers(2, 6),
    own=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    entries=st.integers(1, 800),
    seed=st.integers(0, 1000),
    name=st.sampled_from(sorted(LOSSES)),
)
def test_any_size_and_any_band(n, c, own, more, entries, seed, name):
    logits, target = batch(n, c, *own, (own[0] + more[0], own[1] + more[1]), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_upsampled, "_BAND", {"cpu": entries})
        check_equal(LOSSES[name], logits, target)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradcheck(loss, bands):
    logits, target = batch(1, 3, 2, 3, (6, 8))
    assert torch.autograd.gradcheck(lambda x: 3 * loss(x, target), logits)


@pytest.mark.parametrize(
    "options", [{}, {"class_weights": torch.linspace(0, 2, 4)}, {"label_smoothing": 0.1}]
)
def test_against_torch(options, bands):
    logits, target = batch(dtype=torch.float32)
    found = with_gradient(lambda x: cross_entropy(x, target, **options), logits)
    options["weight"] = options.pop("class_weights", None)
    expected = with_gradient(
        lambda x: F.cross_entropy(resize_map(x, (11, 14)), target, ignore_index=255, **options),
        logits,
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_all_ignored_is_a_finite_zero_with_a_graph(loss, bands, in_bands):
    logits, target = batch()
    value, gradient = with_gradient(loss, logits, torch.full_like(target, 255))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))
    assert in_bands


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(loss, dtype, bands):
    logits, target = batch(dtype=torch.float32)
    logits = (1e4 * logits.detach()).to(dtype).requires_grad_()
    value, gradient = check_equal(loss, logits, target)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_gradients_too_small_for_half_precision_are_scaled_before_they_are_stored(bands):
    logits, target = batch(dtype=torch.float32)
    logits = logits.detach().half().requires_grad_()
    scaled = torch.autograd.grad(2.0**20 * 1e-8 * cross_entropy(logits, target), logits)[0]
    exact = torch.autograd.grad(cross_entropy(logits.float(), target), logits)[0].float()
    torch.testing.assert_close(scaled.float(), 2.0**20 * 1e-8 * exact, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_autocast_changes_nothing(loss, bands):
    logits, target = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradient(loss, logits, target)
    torch.testing.assert_close(found, with_gradient(loss, logits, target), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
        lambda x: x[:1].expand(2, -1, -1, -1),
    ],
)
@pytest.mark.parametrize("entries", [100, 4 * 14 * 11])
def test_any_layout(change, entries, bands):
    bands(entries)
    logits, target = batch()
    x = change(logits.detach()).requires_grad_()
    check_equal(cross_entropy, x, target)
    check_equal(lambda s, t: pixel_wise(s, t, size=(11, 14)), x, change(batch(seed=1)[0].detach()))


def test_logits_without_a_gradient(bands, in_bands):
    logits, target = batch()
    expected = cross_entropy(logits, target)
    assert torch.equal(cross_entropy(logits.detach(), target), expected)
    with torch.no_grad():
        value = cross_entropy(logits, target)
    assert not value.requires_grad
    assert torch.equal(value, expected.detach())
    assert in_bands


def test_backward_may_come_twice_and_gradients_add_up(bands):
    logits, target = batch()
    loss = cross_entropy(logits, target)
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    (2 * loss).backward()
    torch.testing.assert_close(logits.grad, 3 * once)


def test_torch_func(bands):
    logits, target = batch()
    found = torch.func.grad(lambda x: cross_entropy(x, target))(logits.detach())
    torch.testing.assert_close(found, with_gradient(cross_entropy, logits, target)[1])


def test_a_label_that_is_no_class_is_an_error(bands):
    logits, target = batch()
    target[0, 0, 0] = 4
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        cross_entropy(logits, target)


def test_infinite_logits_of_ignored_images(bands):
    """Their value does not count; sure answers stay finite."""
    logits, target = batch(dtype=torch.float32)
    logits = logits.detach() * 1e30
    assert cross_entropy(logits, target).isfinite()
    logits[1] = float("inf")
    target[1] = 255
    assert cross_entropy(logits, target).isfinite()


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["paper", "authors", "ifvd", "cirkd", "mmrazor"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("entries", [1, 4 * 14 * 3, 4 * 14 * 11 + 1])
def test_divergence(convention, masked, entries, bands, in_bands):
    bands(entries)
    student, target = batch(n=3)
    teacher = batch(n=3, h=4, w=6, seed=1)[0]
    options = {
        "convention": convention,
        "temperature": 1.0 if convention == "authors" else 3.0,
        "mask": target != 255 if masked else None,
    }
    found = check_equal(lambda s: pixel_wise(s, teacher, size=(11, 14), **options), student)
    assert in_bands
    upsampled = resize_map(teacher.detach(), (11, 14))
    whole = with_gradient(
        lambda s: pixel_wise(resize_map(s, (11, 14)), upsampled, **options), student
    )
    torch.testing.assert_close(found, whole)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ((3, 5), (11, 14)),
        ((11, 14), (3, 5)),
        ((3, 5), (25, 40)),
        ((25, 40), (3, 5)),
        ((1, 1), (11, 20)),
        ((2, 20), (30, 2)),
    ],
)
def test_divergence_of_maps_of_any_sizes(mine, theirs, bands, in_bands):
    student, teacher = batch(2, 4, *mine)[0], batch(2, 4, *theirs, seed=1)[0].detach()
    check_equal(lambda s: pixel_wise(s, teacher, size=(11, 14)), student)
    smaller = any(h <= 11 and w <= 14 and (h, w) != (11, 14) for h, w in (mine, theirs))
    assert bool(in_bands) == smaller


def test_divergence_gradcheck(bands):
    student, target = batch(1, 3, 2, 3, (6, 8))
    teacher = batch(1, 3, 3, 3, seed=1)[0].requires_grad_()
    for convention in ("paper", "authors"):

        def loss(x, convention=convention):
            return pixel_wise(x, teacher, size=(6, 8), mask=target != 255, convention=convention)

        assert torch.autograd.gradcheck(loss, student)
    loss(student).backward()
    assert teacher.grad is None


def test_divergence_of_nothing_and_of_equals_is_zero(bands):
    student, target = batch(dtype=torch.float32)
    loss = pixel_wise(
        student, 2 * student, size=(11, 14), mask=torch.zeros_like(target, dtype=torch.bool)
    )
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, student)[0], torch.zeros_like(student))
    assert pixel_wise(student, student, size=(11, 14)).abs() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_divergence_half_precision(dtype, bands):
    student, teacher = (
        (1e4 * batch(seed=seed, dtype=torch.float32)[0].detach()).to(dtype) for seed in (0, 1)
    )
    value, gradient = check_equal(
        lambda s: pixel_wise(s, teacher, size=(11, 14)), student.requires_grad_()
    )
    assert value.isfinite()
    assert gradient.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradient(lambda s: pixel_wise(s, teacher, size=(11, 14)), student)
    torch.testing.assert_close(found, (value, gradient), rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_code_upsamples_whole(bands, in_bands):
    logits, target = batch(dtype=torch.float32)
    teacher = batch(dtype=torch.float32, seed=1)[0]

    def both(x):
        return cross_entropy(x, target) + pixel_wise(x, teacher, size=(11, 14))

    value = torch.compile(both, fullgraph=True)(logits)
    assert not in_bands
    torch.testing.assert_close(value, both(logits))
    assert in_bands
