"""The script that measures threads beside loader workers."""

import pytest

from benchmarks import threads


@pytest.mark.slow  # a process for each combination
def test_threads(dry):
    found, printed = dry(threads, "--workers", "1", "--threads", "1")
    assert set(found["arms"]) == {"workers 1, threads 1"}
    assert found["data"] == "scenes"
    assert "| workers 1, threads 1 |" in printed
    with pytest.raises(SystemExit, match="wall clock"):
        threads.main(["--clock", "cpu"])
