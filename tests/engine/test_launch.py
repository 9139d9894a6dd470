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
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_JOB_ID": "12",
    }
    monkeypatch.setattr(launch.os, "environ", environment)
    launch._slurm_environment()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    assert [environment[n] for n in names] == ["2", "4", "1", head]


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
