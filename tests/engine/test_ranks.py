"""Gloo processes with a share of the batch each train to the weights of one process with the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from densekd.engine.launch import Process
from tests.engine.ranks_cases import CASES, train

ROOT = Path(__file__).resolve().parents[2]
DRAWING = sys.modules["densekd.losses.virtual_normal"]


@pytest.fixture(scope="module")
def whole():
    """What one process trains with the whole batch."""
    alone = Process(0, 1, torch.device("cpu"))
    with mock.patch.object(DRAWING, "_draw", DRAWING._draw):  # `train` sets it; here it is set back
        return {name: train(name, alone) for name in CASES}


def run_ranks(count: int, words: list[str], timeout: int = 240) -> None:
    """Start ``python WORDS`` `count` times as the ranks of one group, and wait."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    here = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": port,
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env=here | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        for rank in ranks:
            output, _ = rank.communicate(timeout=timeout)
            assert rank.returncode == 0, output
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(
    ("count", "cases"), [(2, list(CASES)), (4, ["memory", "sharded teacher", "depth bins", "fcos"])]
)
def test_ranks_train_to_the_weights_of_one_process(count, cases, tmp_path, whole):
    run_ranks(count, ["-m", "tests.engine.ranks_cases", str(tmp_path), *cases])
    ranks = [torch.load(tmp_path / f"rank{i}.pt") for i in range(count)]
    wrong = {}
    for name in cases:
        expected = whole[name]
        for key, value in expected["weights"].items():
            if not value.is_floating_point():
                continue
            error = max(float((rank[name]["weights"][key] - value).abs().max()) for rank in ranks)
            if error > 1e-8:
                wrong[f"{name}: {key}"] = error
        for key, value in expected["values"].items():
            if key.startswith(("task/", "distill/")) and key != "distill/holistic":
                got = [rank[name]["values"][key] for rank in ranks]
                if max(abs(x - value) for x in got) > 1e-5 * max(1.0, abs(value)):
                    wrong[f"{name}: value of {key}"] = (value, got)
    assert not wrong
