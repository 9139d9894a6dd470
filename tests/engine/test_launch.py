"""Devices, Slurm variables, signals."""

import os
import signal

import pytest
import torch

from densekd.engine import launch
from densekd.errors import UserError


def test_devices():
    assert launch.pick_device("cpu") == torch.device("cpu")
    for wrong in ("cdua", "tpu9"):
        with pytest.raises(UserError, match="--device"):
            launch.pick_device(wrong)
    if not torch.cuda.is_available():
        assert launch.pick_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match="no CUDA"):
            launch.pick_device("cuda")


@pytest.mark.parametrize(
    ("nodes", "head"), [("node[03-07,9]", "node03"), ("a1,a2", "a1"), ("alone", "alone")]
)
def test_slurm_variables_are_read(monkeypatch, nodes, head):
    environment = {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_JOB_ID": "12",
    }
    monkeypatch.setattr(launch.os, "environ", environment)
    launch._slurm_environment()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    assert [environment[n] for n in names] == ["2", "4", "1", head]


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script, not started by srun
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "RANK": "7"},  # torchrun inside a step
    ],
)
def test_slurm_without_a_step_of_several_tasks_is_left_alone(monkeypatch, environment):
    before = dict(environment)
    monkeypatch.setattr(launch.os, "environ", environment)
    launch._slurm_environment()
    assert environment == before


@pytest.mark.parametrize("wanted", ["auto", "cuda", "cuda:2"])
def test_more_processes_than_gpus_is_a_user_error(monkeypatch, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="2 CUDA devices"):
        launch.pick_device(wanted, 2)
    assert launch.pick_device("auto", 1) == torch.device("cuda", 1)


@pytest.mark.parametrize("benchmark", [True, False])
@pytest.mark.parametrize("deterministic", [True, False])
def test_switches_are_put_back(monkeypatch, benchmark, deterministic):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    with launch.started("cpu", deterministic=deterministic):
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.backends.cudnn.benchmark == (benchmark and not deterministic)
    assert torch.backends.cudnn.benchmark == benchmark
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_the_second_ends(number):
    before = signal.getsignal(number)
    with launch.stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.exit_status == 128 + number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
