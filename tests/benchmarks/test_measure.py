"""Records and tables."""

import json

import pytest
import torch

from benchmarks import measure


def test_a_record_says_what_was_run(tmp_path):
    result = measure.record("x", torch.device("cpu"), pairs=3)
    assert result["environment"]["versions"]["torch"]
    assert result["environment"]["threads"] >= 1
    assert result["pairs"] == 3
    path = measure.output_path(tmp_path / "a" / "x.json", "x")
    measure.write(result, path)
    assert json.loads(path.read_text())["benchmark"] == "x"
    with pytest.raises(SystemExit, match="exists"):
        measure.output_path(path, "x")
    with pytest.raises(FileExistsError):
        measure.write(result, path)


def test_default_outputs_are_dated():
    assert measure.output_path(None, "step-cpu").name.startswith("step-cpu-20")


def test_a_table():
    assert measure.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_command_names_no_folder_of_this_machine(monkeypatch):
    words = ["x.py", "--camvid", "/data/sets/camvid", "--weights=/data/w.pth", "--output", "a/b.json"]  # fmt: skip
    monkeypatch.setattr(measure.sys, "argv", words)
    command = measure.command_line()
    assert command.endswith("--camvid camvid --weights=w.pth --output a/b.json")


def test_the_processes_own_time_is_for_one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert measure.pick("cpu") == torch.device("cpu")
    with pytest.raises(SystemExit, match="would add up"):
        measure.pick("cpu", "cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert measure.pick("cpu", "cpu") == torch.device("cpu")
