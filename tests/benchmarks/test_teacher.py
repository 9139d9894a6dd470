"""The script that measures the teacher's forms, and the cases it shares with the step's."""

import pytest
import torch

from benchmarks import step, teacher
from benchmarks.cases import CASES, make_case, make_step
from densekd.types import DetectorOutput
from tests.benchmarks.conftest import PAIR


def test_teacher(dry):
    found, printed = dry(teacher, *PAIR, "--form", "folded", "bf16")
    case = found["cases"]["espnet_c_from_espnet"]
    assert set(case["seconds"]) == {"loaded", "folded", "bf16"}
    assert case["ratio"]["bf16"]["count"] == 2
    assert case["largest_difference"]["folded"] < 1e-4 < case["largest_difference"]["bf16"] < 0.1
    assert "| espnet | 2×3×64×64 |" in printed


def test_detection_is_a_case():
    config, distiller, batch = make_case(
        CASES["fcos_mv2_from_r50"], torch.device("cpu"), dry=True, teacher={"batch_size": 1}
    )
    assert distiller.teacher is not None
    assert isinstance(distiller.teacher(batch.images).prediction, DetectorOutput)
    named = make_step(config, distiller, torch.device("cpu"))([batch], 0)
    assert {"task/box", "distill/pixel_wise", "distill/pair_wise", "distill/holistic"} <= set(named)


def test_the_step_takes_the_teachers_form(dry):
    options = ["--no-fold", "--teacher-precision", "bf16", "--teacher-channels-last"]
    found, _ = dry(step, *PAIR, *options, "--teacher-batch", "1")
    form = found["cases"]["espnet_c_from_espnet"]["teacher_form"]
    assert form == {
        "precision": "bf16", "fold_norms": False, "channels_last": True, "compile": False, "batch_size": 1,
    }  # fmt: skip
    with pytest.raises(SystemExit):
        step.main(["--teacher-precision", "int8"])
