"""Expected calibration error against values by hand and against torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from densekd.metrics import Calibration


def test_a_value_by_hand():
    calibration = Calibration(bins=2)
    # Low half: sure 0.3 and 0.5, one right: |0.4 - 0.5| with weight 2/5. High half: 0.7, 0.9, 1.0, two right.
    calibration.update(
        torch.tensor([0.3, 0.5, 0.7, 0.9, 1.0]), torch.tensor([True, False, True, True, False])
    )
    found = calibration.compute()
    assert found["ece"] == pytest.approx(2 / 5 * 0.1 + 3 / 5 * (2.6 / 3 - 2 / 3))
    assert [part["share"] for part in found["bins"]] == [0.4, 0.6]
    assert found["bins"][1]["confidence"] == pytest.approx(2.6 / 3)
    assert found["bins"][1]["accuracy"] == pytest.approx(2 / 3)


def test_it_is_torchmetrics_number_over_several_updates():
    draw = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(4000, 5, generator=draw)).softmax(1)
    truth = torch.randint(0, 5, (4000,), generator=draw)
    confidence, answer = probabilities.max(1)
    calibration = Calibration(bins=15)
    for part in range(4):
        rows = slice(1000 * part, 1000 * part + 1000)
        calibration.update(confidence[rows], (answer == truth)[rows])
    expected = multiclass_calibration_error(probabilities, truth, 5, n_bins=15, norm="l1")
    assert calibration.compute()["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_nothing_counted_is_no_error_of_zero():
    found = Calibration().compute()
    assert found["ece"] is None
    assert all(part["accuracy"] is None for part in found["bins"])


def test_ends_of_the_range_are_counted():
    calibration = Calibration(bins=4)
    calibration.update(torch.tensor([0.0, 1.0]), torch.tensor([False, True]))
    assert calibration.compute()["ece"] == 0


def test_wrong_arguments():
    with pytest.raises(ValueError, match="bins is 0"):
        Calibration(bins=0)
    with pytest.raises(ValueError, match="one shape"):
        Calibration().update(torch.zeros(2), torch.zeros(3))
