import json

import pytest

from benchmarks import norms


@pytest.mark.slow  # a process for each way
def test_norms(tmp_path, capsys):
    path = tmp_path / "norms.json"
    arguments = ["--dry", "--device", "cpu", "--case", "espnet", "--output", str(path)]
    assert norms.main(arguments) == 0
    case = json.loads(path.read_text())["cases"]["espnet"]
    assert case["time_over_plain"]["recomputed"]["count"] == 2
    assert case["memory_over_plain"]["recomputed"] < 0.8
    assert "| espnet, 2×3×64×64 | plain |" in capsys.readouterr().out


def test_what_is_kept(tmp_path, capsys):
    path = tmp_path / "kept.json"
    assert norms.main(["--dry", "--kept", "--case", "espnet", "--output", str(path)]) == 0
    case = json.loads(path.read_text())["cases"]["espnet"]
    assert 0.3 < case["over_plain"]["recomputed"] < 0.6
    assert "| espnet, 2×3×64×64 | plain |" in capsys.readouterr().out
