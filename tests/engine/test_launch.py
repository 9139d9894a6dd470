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


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "4"}, 2),
        ({"WORLD_SIZE": "32"}, 1),
    ],
)
def test_cores_are_shared(monkeypatch, threads, environment, expected):
    monkeypatch.setattr(launch, "available_cores", lambda: 8)
    monkeypatch.setattr(launch.os, "environ", environment)
    assert launch.share_cores() == torch.get_num_threads() == expected


def test_the_users_number_of_threads_holds(monkeypatch, threads):
    torch.set_num_threads(1)
    monkeypatch.setattr(launch, "available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch.share_cores() == 1


def test_threads_are_put_back(monkeypatch, threads):
    torch.set_num_threads(1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "available_cores", lambda: 3)
    with launch.started("cpu"):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("listing", "files", "cores"),
    [
        ("0::/job/run", {"job/run/cpu.max": "max 100000", "job/cpu.max": "250000 100000"}, 2.5),
        ("0::/not/seen/from/inside", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {}, float("inf")),
        (
            "4:cpu,cpuacct:/box\n3:memory:/box",
            {"cpu/box/cpu.cfs_quota_us": "400000", "cpu/box/cpu.cfs_period_us": "100000"},
            4.0,
        ),
        (
            "1:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            float("inf"),
        ),
    ],
)
def test_a_containers_quota_is_read(tmp_path, listing, files, cores):
    (tmp_path / "listing").write_text(listing + "\n")
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert launch._quota(str(tmp_path / "groups"), str(tmp_path / "listing")) == cores
    assert launch._quota(str(tmp_path / "groups"), str(tmp_path / "none")) == float("inf")


def test_available_cores(monkeypatch):
    monkeypatch.delenv("DENSEKD_CORES", raising=False)
    assert 1 <= launch.available_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(launch, "_quota", lambda: 0.5)
    assert launch.available_cores() == 1
    monkeypatch.setattr(launch, "_quota", lambda: 64.0)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert launch.available_cores() == 16
    monkeypatch.setenv("DENSEKD_CORES", "5")
    assert launch.available_cores() == 5


def test_a_run_that_need_not_be_deterministic_leaves_the_switch_alone(monkeypatch):
    """The call alone loads torch's compiler, which takes a second."""
    calls = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: calls.append(a))
    with launch.started("cpu"):
        pass
    assert calls == []
