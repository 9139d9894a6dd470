import pytest

from benchmarks import upsampled_loss


@pytest.mark.slow  # a process for each form and loss
def test_upsampled_loss(dry):
    found, printed = dry(upsampled_loss, "--loss", "cross_entropy", "kl")
    case = found["cases"]["dry"]
    n, k, height, width = case["shape"]
    full = 4 * n * k * height * width
    assert set(case["losses"]) == {"cross_entropy", "kl"}
    for name, loss in case["losses"].items():
        assert loss["time_over_plain"]["count"] == 2
        assert loss["relative_difference"]["value"] < 1e-5
        assert loss["relative_difference"]["gradient"] < 1e-5
        # The upsampled logits, their softmax, its gradient; a band, and some maps of one value a pixel.
        assert loss["extra_bytes"]["plain"]["tensors"] > 2.9 * full, name
    assert "| dry 2×5×256×512 | kl |" in printed
