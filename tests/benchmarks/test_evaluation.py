"""The script runs without data."""

import pytest

from benchmarks import evaluation


def test_dry(dry):
    found, printed = dry(evaluation)
    (case,) = found["cases"].values()
    assert set(case["seconds"]) == set(evaluation.ARMS)
    assert case["times_faster"]["plain"]["count"] == 2
    assert case["differing_pixels"] == 0
    assert case["border_cells"][0] > 0.9
    assert case["extra_bytes"]["plain"]["tensors"] > case["extra_bytes"]["densekd"]["tensors"]
    for part in ("after the forward passes", "with them"):
        assert found["views"][part]["views"] == 6
        assert set(found["views"][part]["seconds"]) == {"plain", "densekd"}
    assert "| six views |" in printed


def test_data_and_weights_come_together(capsys):
    with pytest.raises(SystemExit):
        evaluation.main(["--camvid", "folder"])
    assert "come together" in capsys.readouterr().err
