"""One process of several that dies ends the run in seconds, and says so; torchrun goes on from a checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densekd.cli.main import lost_process
from densekd.engine.folder import RunFolder
from tests.cli.helpers import ENVIRONMENT, write_recipe
from tests.reliability.runs import small_tree

STEPS, KILLED_AT = 30, 8
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]


def test_only_a_lost_connection_is_another_processs_end(monkeypatch):
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:4242")
    assert lost_process(closed) is None  # one process alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert lost_process(RuntimeError("shapes differ")) is None
    assert lost_process(closed).startswith("process 1: another process of this run has ended")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tree = small_tree(steps=STEPS, save_every=3)
    recipe = write_recipe(folder / "recipe.yaml", tree)
    return ["densekd", "train", str(recipe), "--out", str(folder), "--device", "cpu", "--resume"]


def start(words, name, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", *words, "--name", name],
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_ranks(words, name):
    """Two processes as srun starts them: nobody watches over them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [start(words, name, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]


def folder_of(words, name):
    return RunFolder(Path(words[words.index("--out") + 1]) / name)


def wait_for(folder, rows):
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if folder.metrics.exists() and len(folder.metrics.read_text().splitlines()) >= rows:
            return
        time.sleep(0.02)
    pytest.fail(f"{folder.path} never logged {rows} steps")


def children_by_rank(process):
    """Rank -> process, of those that torchrun started."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = {}
    for child in path.read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(v[5:]): int(child) for v in variables if v.startswith(b"RANK=")}
    return found


@pytest.fixture(scope="module")
def whole(words):
    ranks = start_ranks(words, "whole")
    for rank in ranks:
        output, _ = rank.communicate(timeout=240)
        assert rank.returncode == 0, output
    return folder_of(words, "whole").student.read_bytes()


@pytest.mark.slow
@pytest.mark.dist
def test_the_others_end_in_seconds_and_say_why(words, whole):
    folder = folder_of(words, "alone")
    ranks = start_ranks(words, "alone")
    try:
        wait_for(folder, KILLED_AT)
        ranks[1].kill()
        killed = time.monotonic()
        output, _ = ranks[0].communicate(timeout=60)
        assert time.monotonic() - killed < 15
        assert ranks[0].returncode == 1
        assert "process 0: another process of this run has ended" in output
        assert "--resume" in output
        assert "Traceback" not in output
    finally:
        for rank in ranks:
            rank.kill()
    for rank in start_ranks(words, "alone"):
        output, _ = rank.communicate(timeout=240)
        assert rank.returncode == 0, output
    assert folder.student.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(not os.path.exists("/proc"), reason="finds torchrun's processes in /proc")
def test_torchrun_starts_the_ranks_again_and_the_bytes_are_the_same(words, whole):
    folder = folder_of(words, "again")
    process = start([*TORCHRUN, "-m", *words], "again")
    try:
        wait_for(folder, KILLED_AT)
        os.kill(children_by_rank(process)[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    finally:
        process.kill()
    assert folder.student.read_bytes() == whole
