import pytest

from benchmarks import teacher_cache
from tests.benchmarks.conftest import PAIR


def test_dry(dry):
    found, printed = dry(teacher_cache, *PAIR)
    case = found["cases"]["espnet_c_from_espnet"]
    assert set(case["ratio"]) == {"pi", "pi_pa", "pi_pa_int8", "pi_pa_live", "read"}
    assert case["ratio"]["pi_pa"]["count"] == 2
    half, byte = (case["storages"][name] for name in ("fp16", "int8"))
    assert byte["bytes"] < 0.8 * half["bytes"]
    for term in ("pixel_wise", "pair_wise"):
        assert half["terms"][term]["value"] < byte["terms"][term]["value"] < 0.05
        assert half["terms"][term]["gradient"] < byte["terms"][term]["gradient"] < 0.05
    assert "| espnet_c_from_espnet | 2×3×64×64 |" in printed
    with pytest.raises(SystemExit, match="--teacher FILE"):
        teacher_cache.main(["--dry", "--camvid", "anywhere"])
