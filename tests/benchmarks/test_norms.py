import pytest

from benchmarks import norms


@pytest.mark.slow  # a process for each way
def test_norms(dry):
    found, printed = dry(norms, "--case", "espnet")
    case = found["cases"]["espnet"]
    assert case["time_over_plain"]["recomputed"]["count"] == 2
    assert case["memory_over_plain"]["recomputed"] < 0.8
    assert "| espnet, 2×3×64×64 | plain |" in printed


def test_what_is_kept(dry):
    found, printed = dry(norms, "--kept", "--case", "espnet")
    case = found["cases"]["espnet"]
    assert 0.3 < case["over_plain"]["recomputed"] < 0.6
    assert "| espnet, 2×3×64×64 | plain |" in printed
