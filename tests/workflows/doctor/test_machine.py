"""The machine: each check fires on what it is for, and is quiet else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densekd.config.load import make_config
from densekd.workflows.doctor import machine
from densekd.workflows.doctor.machine import (
    busy_finding,
    core_findings,
    disk_finding,
    extra_findings,
    machine_findings,
    memory_finding,
    no_compiler,
    precision_finding,
    setting_findings,
    version_findings,
)

CPU = torch.device("cpu")
PAIR = {
    "torch": "2.8.0+cpu",
    "torch_cuda": None,
    "torchvision": "0.23.0+cpu",
    "torchvision_cuda": None,
    "wants": ("==", "2.8.0"),
    "fault": None,
}


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "ok", "are a pair"),
        ({"wants": (">=", "2.7.0")}, "ok", "are a pair"),
        ({"wants": None}, "ok", "are a pair"),
        ({"wants": ("==", "2.7.1")}, "error", "wants torch ==2.7.1"),
        ({"wants": (">=", "2.9.0")}, "error", "wants torch >=2.9.0"),
        ({"torchvision": None}, "error", "not installed"),
        ({"fault": "operator torchvision::nms does not exist"}, "error", "operators do not load"),
        ({"torchvision_cuda": "12.8"}, "warning", "different devices"),
    ],
)
def test_the_pair(changed, level, words):
    (finding,) = version_findings({**PAIR, **changed})
    assert (finding.level, words in finding.what) == (level, True)
    assert ("pip install" in finding.advice) == (level != "ok")


@pytest.mark.parametrize(
    ("text", "version"), [(None, None), ("12.8", "12.8"), (12080, "12.8"), (13000, "13.0")]
)
def test_torchvisions_way_of_writing_cuda(text, version):
    assert machine._cuda_version(text) == version


def test_extras_name_the_line_that_brings_them():
    present, absent = extra_findings({"det": [], "hf": ["transformers"]})
    assert (present.level, present.what) == ("ok", "extras present: det")
    assert absent.level == "note"
    assert "pip install 'densekd[hf]'" in absent.advice


def test_threads_beyond_the_cores(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 64)
    monkeypatch.setattr(machine, "busy_finding", lambda threads: None)
    assert [f.level for f in core_findings()] == ["ok"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 65)
    (finding,) = core_findings()
    assert (finding.level, finding.advice) == ("warning", "Set OMP_NUM_THREADS=64, or leave it out")


def test_several_threads_on_a_busy_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    finding = busy_finding(2, load=6.0)
    assert (finding.level, "load 6.0 on 2 cores" in finding.what) == ("note", True)
    assert "OMP_NUM_THREADS=1" in finding.advice
    assert busy_finding(1, load=6.0) is None  # one waits for nobody
    assert busy_finding(2, load=2.0) is None


def test_little_memory():
    assert memory_finding(10 * 2**30).level == "ok"
    assert memory_finding(2**30).level == "warning"
    assert memory_finding(None).level == "note"


def test_disk(tmp_path):
    assert disk_finding(tmp_path / "not" / "there", "the cache").level in ("ok", "warning")
    finding = disk_finding(tmp_path, "the cache", needed=10**18)
    assert (finding.level, "are needed" in finding.what) == ("error", True)
    (tmp_path / "file").write_text("")
    assert disk_finding(tmp_path / "file" / "runs", "the run", needed=1).level == "error"
    assert disk_finding(tmp_path / "file" / "runs", "the cache").level == "warning"


def test_an_emulated_format():
    def measured(ratio):
        return lambda dtype, device: ratio

    assert precision_finding("bf16", CPU, measure=measured(0.6)).level == "ok"
    slow = precision_finding("bf16", CPU, measure=measured(9.0))
    assert (slow.level, "takes 9 times as long" in slow.what) == ("note", True)
    assert precision_finding("bf16", CPU, "train.amp", measured(9.0)).level == "warning"

    def broken(dtype, device):
        raise RuntimeError("no such kernel")

    assert precision_finding("bf16", CPU, "train.amp", broken).level == "error"


def test_the_environment_of_this_machine():
    findings = machine_findings(CPU)
    assert not [f for f in findings if f.level == "error"]
    assert {f.area for f in findings} == {"environment"}


# --- what a recipe asks of the machine ------------------------------------------------------------------------------


def found(tree, ratio=9.0):
    config = make_config(tree, "test")
    findings = setting_findings(config, CPU, measure=lambda dtype, device: ratio)
    return {finding.setting: finding.level for finding in findings}


def test_a_plain_recipe_asks_nothing_special(tiny_tree):
    assert found(tiny_tree) == {}


def test_bf16_is_measured_where_a_setting_asks_for_it(tiny_tree):
    assert found(tiny_tree) == {}
    tiny_tree["train"]["amp"] = "bf16"
    assert found(tiny_tree) == {"train.amp": "warning"}
    assert found(tiny_tree, ratio=0.7) == {}
    tiny_tree["train"]["amp"] = "none"
    tiny_tree["teacher"]["precision"] = "bf16"
    assert found(tiny_tree) == {"teacher.precision": "warning"}


def test_more_loaders_than_cores(tiny_tree, monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    tiny_tree["data"]["workers"] = 2
    assert found(tiny_tree) == {}
    tiny_tree["data"]["workers"] = 3
    assert found(tiny_tree) == {"data.workers": "note"}


def test_compiling_needs_a_compiler(tiny_tree, monkeypatch, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    tiny_tree["train"]["compile"] = True
    assert found(tiny_tree) == {}
    Path(compiler).unlink()
    assert no_compiler(CPU) == "there is no C++ compiler (g++ or clang++)"
    assert found(tiny_tree) == {"train.compile": "error"}


@pytest.mark.slow
def test_a_broken_torchvision_can_still_be_told():
    """What looks whether torchvision loads is itself loaded without it."""
    code = "import sys, densekd.workflows.doctor.machine as m; print('torchvision' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "False"
