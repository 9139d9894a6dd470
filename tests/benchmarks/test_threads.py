"""The script that measures threads beside loader workers."""

import json

import pytest

from benchmarks import threads


@pytest.mark.slow  # a process for each combination
def test_threads(tmp_path, capsys):
    path = tmp_path / "threads.json"
    arguments = ["--dry", "--workers", "1", "--threads", "1", "--output", str(path)]
    assert threads.main(arguments) == 0
    found = json.loads(path.read_text())
    assert set(found["arms"]) == {"workers 1, threads 1"}
    assert found["data"] == "scenes"
    assert "| workers 1, threads 1 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="wall clock"):
        threads.main(["--clock", "cpu"])
