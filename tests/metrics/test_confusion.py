"""The confusion matrix against hand values and torchmetrics."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from densekd.metrics import ConfusionMatrix


def test_by_hand():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 1, 1, 255]]))
    # class 0: one hit, one false alarm; class 1: one hit, one miss; class 2: only on an ignored pixel
    assert matrix.iou()[:2].tolist() == [0.5, 0.5]
    assert math.isnan(matrix.iou()[2])
    assert matrix.miou() == 0.5
    assert matrix.pixel_accuracy() == pytest.approx(2 / 3)


def test_nothing_counted_is_nan_not_zero():
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(1, 4, 4), torch.full((1, 4, 4), 255))
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.pixel_accuracy())


def test_counts_begin_on_the_device_asked_for():
    assert ConfusionMatrix(2).counts.device.type == "cpu"
    assert ConfusionMatrix(2, device="meta").counts.device.type == "meta"


def test_batches_add_up():
    generator = torch.Generator().manual_seed(0)
    guess = torch.randint(0, 5, (6, 9, 7), generator=generator)
    truth = torch.randint(0, 5, (6, 9, 7), generator=generator)
    whole, parts = ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(guess, truth)
    for i in range(6):
        parts.update(guess[i], truth[i])
    assert torch.equal(whole.counts, parts.counts)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_equal_to_torchmetrics(dtype):
    metrics = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 7, (3, 20, 21), generator=generator)
    guess = torch.where(
        torch.rand(truth.shape, generator=generator) < 0.6,
        truth,
        torch.randint(0, 7, truth.shape, generator=generator),
    )
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = 255
    ours = ConfusionMatrix(7)
    ours.update(guess.to(dtype), truth)
    oracle = metrics.MulticlassJaccardIndex(7, average=None, ignore_index=255)(guess, truth)
    assert torch.allclose(ours.iou().float(), oracle, atol=1e-6)


def one_by_one(guess, truth, k, ignore):
    counts = torch.zeros(k, k, dtype=torch.int64)
    for g, t in zip(guess.flatten().tolist(), truth.flatten().tolist(), strict=True):
        if t != ignore:
            counts[t, g] += 1
    return counts


@given(
    seed=st.integers(0, 2**31),
    k=st.sampled_from([1, 2, 19, 127, 128, 200, 300, 600]),
    ignore=st.sampled_from([255, 0, 11, -1, -100, 65535, 2**40]),
    guess_kind=st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]),
    truth_kind=st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]),
    part=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(deadline=None)
def test_any_type_and_ignore_index(seed, k, ignore, guess_kind, truth_kind, part):
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, k, (2, 5, 6), generator=g)
    guess = torch.randint(0, k, (2, 5, 6), generator=g)
    ignored = torch.rand(truth.shape, generator=g) < part
    truth[ignored] = ignore
    guess[ignored] = torch.randint(0, 256, (int(ignored.sum()),), generator=g)  # does not matter
    for values, kind in ((truth, truth_kind), (guess, guess_kind)):
        assume(torch.equal(values.to(kind).long(), values))
    matrix = ConfusionMatrix(k, ignore)
    matrix.update(guess.to(guess_kind), truth.to(truth_kind))
    assert torch.equal(matrix.counts, one_by_one(guess, truth, k, ignore))


@pytest.mark.parametrize("ignored", [-7, 3, 254, 2**15 - 1, 2**33])
def test_predictions_at_ignored_pixels_may_be_anything(ignored):
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[2, ignored]]), torch.tensor([[2, 255]]))
    assert matrix.counts.sum() == matrix.counts[2, 2] == 1


def test_the_given_maps_are_left_alone():
    for kind in (torch.uint8, torch.int16, torch.int32, torch.int64):
        guess, truth = torch.tensor([[0, 1, 2]], dtype=kind), torch.tensor([[2, 1, 100]], dtype=kind)  # fmt: skip
        ConfusionMatrix(3, ignore_index=100).update(guess, truth)
        assert guess.tolist() == [[0, 1, 2]]
        assert truth.tolist() == [[2, 1, 100]]


@pytest.mark.parametrize(
    ("guess", "truth", "words"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), "shape"),
        (torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2), "prediction has values 3"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 9), "target has values 9"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), -1), "target has values -1"),
        (torch.full((1, 2, 2), -1), torch.zeros(1, 2, 2), "prediction has values -1"),
        (torch.full((1, 2, 2), 2**40), torch.zeros(1, 2, 2), "prediction has values 1099511627776"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 2**16), "target has values 65536"),
        (torch.full((1, 2, 2), 3).byte(), torch.zeros(1, 2, 2).byte(), "prediction has values 3"),
        (
            torch.zeros(1, 2, 2).byte(),
            torch.tensor([[[3, 255], [255, 0]]]),
            "target has values 0 to 3",
        ),
    ],
)
def test_bad_input_is_named(guess, truth, words):
    with pytest.raises(ValueError, match=words):
        ConfusionMatrix(3).update(guess, truth)


@pytest.mark.parametrize("kind", [torch.bool, torch.int8, torch.uint16, torch.uint32, torch.uint64])
def test_any_integer_type(kind):
    ours = ConfusionMatrix(2)
    guess, truth = torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 0]])
    ours.update(guess.to(kind), truth)
    ours.update(guess, truth.to(kind))
    assert ours.counts.tolist() == [[0, 2], [2, 2]]
