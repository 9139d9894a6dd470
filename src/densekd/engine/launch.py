"""Processes, devices and signals: what must be right before the first tensor."""

from __future__ import annotations

import ctypes
import gc
import importlib
import math
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from densekd.errors import UserError


@dataclass(frozen=True)
class Process:
    """Who this process is among all."""

    rank: int
    world_size: int
    device: torch.device


def _slurm_environment() -> None:
    """Give torch.distributed the variables of a `srun` of several tasks, where torchrun did not.

    SLURM_NTASKS alone says nothing: a batch script has it too, and is one process that waits for no other.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in os.environ or tasks < 2 or "SLURM_PROCID" not in os.environ:
        return
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = str(tasks)
    os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    # "node[03-07,9]" -> "node03", "a1,a2" -> "a1"
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get(
        "SLURM_JOB_NODELIST", "localhost"
    )
    head = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    assert head is not None
    os.environ.setdefault("MASTER_ADDR", head.group(1) + (head.group(2) or ""))
    os.environ.setdefault(
        "MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
    )


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; UserError where it is not there."""
    if wanted == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        device = torch.device("cuda" if wanted == "auto" else wanted)
    except RuntimeError as error:
        raise UserError(
            f"--device {wanted!r} is unknown; expected auto, cpu, cuda, cuda:N or mps"
        ) from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {wanted!r}: this PyTorch sees no CUDA device; use --device cpu"
            )
        if device.index is None:
            device = torch.device("cuda", local_rank)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"--device {wanted!r}: process {local_rank} of this machine wants {device}, and there are "
                f"{torch.cuda.device_count()} CUDA devices; start one process a device, or use --device cpu"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this PyTorch sees no Apple GPU; use --device cpu")
    return device


def available_cores() -> int:
    """Cores this process may use: those it is bound to, or fewer where a container has a quota of processor time."""
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    cores = len(bound) or os.cpu_count() or 1
    share = os.environ.get("DENSEKD_CORES")  # what an ablation gives to each of its runs
    return max(1, int(min(cores, _quota(), int(share) if share else cores)))


def _quota(root: str = "/sys/fs/cgroup", listing: str = "/proc/self/cgroup") -> float:
    """Cores' worth of time that Linux's control groups give this process; infinite where none says."""
    try:
        lines = Path(listing).read_text().splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        kind = "cpu" if "cpu" in controllers.split(",") else ""
        if controllers and not kind:
            continue
        for folder in (Path(path), *Path(path).parents):  # a group has no more than those around it
            place = Path(root, kind, *folder.parts[1:])
            try:
                if kind:  # version 1
                    quota = (place / "cpu.cfs_quota_us").read_text().strip()
                    period = (place / "cpu.cfs_period_us").read_text()
                else:
                    quota, period = (place / "cpu.max").read_text().split()
            except (OSError, ValueError):
                continue
            if quota not in ("max", "-1"):
                least = min(least, int(quota) / int(period))
    return least


def keep_freed_memory() -> None:
    """Tell glibc to keep big freed blocks instead of handing them back to the kernel.

    A training step frees and takes the same large tensors again; each return costs page faults. No effect elsewhere.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        return


def share_cores() -> int:
    """Threads for compute on the CPU; sets and returns them.

    ``OMP_NUM_THREADS`` is obeyed where it is set. Else the cores are shared by the processes on this machine
    (``LOCAL_WORLD_SIZE``, or all of the group). Loader processes, of one thread each, get none of their own: beside a
    step on the CPU they are mostly idle (measured in docs/benchmarks.md).
    """
    if "OMP_NUM_THREADS" not in os.environ:
        processes = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1
        torch.set_num_threads(max(1, available_cores() // int(processes)))
    return torch.get_num_threads()


def _join(backend: str) -> None:
    """Join the group; after a restart by torchrun, under names of its own.

    torchrun keeps one store over its restarts, in which a process of the last attempt is still found (PyTorch 2.14).
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0":
        dist.init_process_group(backend)
        return
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


@contextmanager
def started(device: str = "auto", *, deterministic: bool = False) -> Iterator[Process]:
    """Join the process group that torchrun or Slurm describes (none: a single process), and leave it again."""
    _slurm_environment()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = pick_device(device, local)
    threads = torch.get_num_threads()
    if place.type == "cpu":
        keep_freed_memory()
        share_cores()
    else:
        torch.set_float32_matmul_precision("high")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    benchmark_before = torch.backends.cudnn.benchmark
    own_group = world > 1 and not dist.is_initialized()
    try:
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        elif place.type == "cuda":
            torch.backends.cudnn.benchmark = True
        if own_group:
            # What torch imports after the group is made keeps it as default arguments, and its threads then outlive the
            # group: one that meets the end of the interpreter aborts the process (SIGABRT after the last result).
            importlib.import_module("torch._dynamo")
            _join("nccl" if place.type == "cuda" else "gloo")
        rank = dist.get_rank() if dist.is_initialized() else 0
        size = dist.get_world_size() if dist.is_initialized() else 1
        yield Process(rank, size, place)
    finally:
        torch.set_num_threads(threads)
        if deterministic:  # the call alone loads torch's compiler, which takes a second
            torch.use_deterministic_algorithms(deterministic_before)
        torch.backends.cudnn.benchmark = benchmark_before
        if own_group and dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()  # the group ends with its last holder, and a module in a cycle is one


# Ctrl-C; a job's end; Slurm's warning before it (--signal=USR1@120); a terminal that has gone.
STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


@dataclass
class StopRequest:
    """Set by the first signal of `STOPPING`; the loop looks at it between steps."""

    signal: int = 0

    def __bool__(self) -> bool:
        return self.signal != 0

    @property
    def exit_status(self) -> int:
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """The first signal of `STOPPING` asks the loop to save and stop; the second SIGINT or SIGTERM ends at once.

    SIGHUP stays ignored where it was (under nohup).
    """
    request = StopRequest()
    ended = False  # the end of a job follows its warning: only one more ends at once

    def handle(number: int, frame: object) -> None:
        nonlocal ended
        ends = number in (signal.SIGINT, signal.SIGTERM)
        if ends and ended:
            raise KeyboardInterrupt
        ended = ended or ends
        request.signal = request.signal or number

    previous = {}
    try:
        for name in STOPPING:
            number = getattr(signal, name, None)  # Windows has two of them
            if number is None or (name == "SIGHUP" and _ignored(number)):
                continue
            previous[number] = signal.signal(number, handle)
    except ValueError:  # not in the main thread: whoever owns it handles signals
        pass
    try:
        yield request
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN
