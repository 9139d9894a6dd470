"""The script that measures a student's own step."""

from benchmarks import student


def test_student(dry):
    found, printed = dry(student, "--network", "espnet_c")
    result = found["networks"]["espnet_c"]
    assert set(result["over_contiguous"]) == {"contiguous", "channels_last"}
    assert set(result["optimizers"]["AdamW"]["over_loop"]) == {"loop", "foreach", "fused"}
    assert "| espnet_c, 2×3×64×64 | channels_last |" in printed
    for layout in ("contiguous", "channels_last"):
        assert 0 < sum(result["operators"][layout].values()) <= 1
        # oneDNN is not of every build; where it is, a training step runs its convolutions.
        kinds = {row["kind"] for row in result["kernels"][layout]}
        assert not kinds or "convolution" in kinds
