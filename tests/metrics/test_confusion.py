"""The confusion matrix against hand values and torchmetrics."""

import math

import pytest
import torch

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


@pytest.mark.parametrize(
    ("guess", "truth", "words"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), "shape"),
        (torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2), "prediction has values 3"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 9), "target has values 9"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), -1), "target has values -1"),
    ],
)
def test_bad_input_is_named(guess, truth, words):
    with pytest.raises(ValueError, match=words):
        ConfusionMatrix(3).update(guess, truth)
