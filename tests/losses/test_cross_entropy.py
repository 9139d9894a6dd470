from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.losses import (
    CrossEntropy,
    OhemCrossEntropy,
    SegmentationLoss,
    cross_entropy,
    ohem_cross_entropy,
    segmentation_loss,
)
from tests.golden_rule import load_golden


def batch(n=2, c=5, h=6, w=7, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, h, w, generator=g, dtype=dtype).requires_grad_()
    target = torch.randint(0, c, (n, h, w), generator=g)
    target[torch.rand(n, h, w, generator=g) < 0.3] = 255
    target[0, 0, 0] = 0
    return logits, target


def test_golden():
    golden = load_golden("seed_losses")
    main = golden["logits_student"].requires_grad_()
    aux = golden["aux_logits_student"].requires_grad_()
    loss = segmentation_loss(main, aux, golden["target"])
    loss.backward()
    torch.testing.assert_close(loss, golden["dsn.loss"], rtol=1e-5, atol=0)
    for x, row in ((main, "dsn.grad_main"), (aux, "dsn.grad_aux")):
        assert (x.grad - golden[row]).norm() / golden[row].norm() <= 1e-4
    torch.testing.assert_close(SegmentationLoss()(main, aux, golden["target"]), loss)


def test_value_by_hand():
    logits = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    target = torch.tensor([[[0, 1, 255]]])
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert cross_entropy(logits, target).item() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), smoothing=st.sampled_from([0.0, 0.1]), weighted=st.booleans())
def test_equals_torch_where_pixels_are_valid(seed, smoothing, weighted):
    logits, target = batch(seed=seed)
    weights = torch.rand(5, generator=torch.Generator().manual_seed(seed)) if weighted else None
    options = {"label_smoothing": smoothing, "ignore_index": 255}
    loss = cross_entropy(logits, target, class_weights=weights, **options)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, weight=weights, **options))
    torch.testing.assert_close(CrossEntropy(class_weights=weights, **options)(logits, target), loss)
    twice = cross_entropy(
        logits.repeat(2, 1, 1, 1), target.repeat(2, 1, 1), class_weights=weights, **options
    )
    torch.testing.assert_close(twice, loss)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_all_ignored_is_a_finite_zero_with_a_graph(loss):
    logits, target = batch(n=1)
    value = loss(logits, torch.full_like(target, 255))
    value.backward()
    assert value == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_all_ignored_with_class_weights():
    logits, target = batch()
    loss = cross_entropy(logits, torch.full_like(target, 255), class_weights=torch.ones(5))
    assert loss == 0


def ohem_by_hand(logits, target, threshold, min_kept):
    loss = F.cross_entropy(logits, target, ignore_index=255, reduction="none")[target != 255]
    loss = loss.sort(descending=True).values
    easy_from = int(((-loss).exp() < threshold).sum())
    return loss[: max(easy_from, math.ceil(min_kept * len(loss)))].mean()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([0.05, 0.3, 0.7]),
    min_kept=st.sampled_from([0.0625, 0.5, 1.0]),
)
def test_ohem_keeps_the_hard_pixels(seed, threshold, min_kept):
    logits, target = batch(seed=seed)
    loss = ohem_cross_entropy(logits, target, threshold=threshold, min_kept=min_kept)
    torch.testing.assert_close(loss, ohem_by_hand(logits, target, threshold, min_kept))
    stored = OhemCrossEntropy(threshold=threshold, min_kept=min_kept)
    assert torch.equal(stored(logits, target), loss)


def test_ohem_of_all_pixels_is_cross_entropy():
    logits, target = batch()
    torch.testing.assert_close(
        ohem_cross_entropy(logits, target, min_kept=1.0), cross_entropy(logits, target)
    )


def test_ohem_with_nothing_hard_and_nothing_kept_is_zero():
    _, target = batch()
    sure = 100.0 * F.one_hot(target.where(target != 255, 0), 5).movedim(-1, 1)
    assert ohem_cross_entropy(sure, target, min_kept=0.0) == 0


def test_without_auxiliary_head():
    logits, target = batch()
    assert torch.equal(segmentation_loss(logits, None, target), cross_entropy(logits, target))
    term = OhemCrossEntropy(threshold=0.5)
    torch.testing.assert_close(
        SegmentationLoss(term, aux_weight=1.0)(logits, logits, target), 2 * term(logits, target)
    )


def test_resizes_logits_to_the_labels():
    logits, _ = batch()
    target = torch.zeros(2, 13, 17, dtype=torch.long)
    resized = F.interpolate(logits, (13, 17), mode="bilinear", align_corners=True)
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(resized, target))


def test_exception():
    logits, target = batch()
    with pytest.raises(ValueError, match=r"expected torch\.int64"):
        cross_entropy(logits, target.int())
    with pytest.raises(ValueError, match="with N = 2"):
        cross_entropy(logits, target[:1])
    with pytest.raises(ValueError, match="one weight for each of the 5 classes"):
        cross_entropy(logits, target, class_weights=torch.ones(4))
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0"):
        CrossEntropy(label_smoothing=1.0)
    with pytest.raises(ValueError, match="threshold is 0"):
        OhemCrossEntropy(threshold=0)
    with pytest.raises(ValueError, match="divide it by the pixels"):
        ohem_cross_entropy(logits, target, min_kept=100_000)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_gradcheck(loss):
    logits, target = batch(n=1, c=3, h=2, w=3, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(loss, dtype):
    logits, target = batch(h=257, w=257)
    logits = (1e4 * logits.detach()).to(dtype).requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.slow
def test_compile():
    logits, target = batch()
    for loss in (cross_entropy, ohem_cross_entropy):
        compiled = torch.compile(loss, fullgraph=True)
        torch.testing.assert_close(compiled(logits, target), loss(logits, target))


def test_class_weights_are_not_saved():
    assert CrossEntropy(class_weights=[1.0, 2.0]).state_dict() == {}
