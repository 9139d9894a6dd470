"""The script that measures what computes the teacher."""

import pytest

from benchmarks import teacher_runtime
from tests.benchmarks.conftest import PAIR


def test_errors_stand_beside_the_times(dry):
    found, printed = dry(teacher_runtime, *PAIR, "--form", "folded", "channels_last")
    assert set(found["seconds"]) == {"loaded", "folded", "channels_last"}
    assert found["ratio"]["folded"]["count"] == 2
    assert 0 < found["map_errors"]["folded"]["prediction"] < 1e-4
    terms = found["term_errors"]["folded"]
    assert set(terms) == {"distill.pixel_wise", "distill.pair_wise"}
    assert all(0 < error["gradient"] < 1e-3 for error in terms.values())
    assert "| folded |" in printed


@pytest.mark.slow  # an export
def test_a_runtime_is_measured(dry):
    pytest.importorskip("onnxscript")
    found, _ = dry(teacher_runtime, *PAIR, "--form", "onnxruntime", "onnxruntime_int8")
    maps = found["map_errors"]
    assert maps["onnxruntime"]["prediction"] < 1e-4 < maps["onnxruntime_int8"]["prediction"]
