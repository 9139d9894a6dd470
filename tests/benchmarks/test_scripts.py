"""Each script runs: tiny, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu, levers, operators, pack_camvid, pair_wise, peers, scale, shards, step
from densekd.data import CamVid
from densekd.engine.folder import RunFolder
from tests.benchmarks.conftest import PAIR

ROOT = Path(__file__).resolve().parents[2]


def test_step(dry):
    found, printed = dry(step, *PAIR)
    case = found["cases"]["espnet_c_from_espnet"]
    assert set(case["seconds"]) == {"teacher", "student", "discriminator", "pi_pa", "pi_pa_ho"}
    assert case["ratio"]["pi_pa"]["count"] == 2
    assert "| espnet_c_from_espnet | 2×3×64×64 |" in printed


def test_scale(dry):
    found, printed = dry(scale, *PAIR)
    pair = found["cases"]["espnet_c_from_espnet"]
    # SGD with momentum: the weights, their momenta, and the discriminator's weights.
    assert pair["checkpoint"] > 2 * pair["gradients"] + pair["discriminator"]
    assert pair["weights"] > pair["gradients"] > 0 < pair["buffers"]
    assert found["order"]["bytes"] == 8 * found["order"]["samples"]
    assert found["listing"]["pairs"] == 50
    assert "| files listed | 50 |" in printed


@pytest.mark.slow  # two processes
def test_collectives(tmp_path):
    words = [
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "benchmarks.collectives",
        "--dry",
        "--pairs",
        "2",
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *words,
        "--output",
        str(tmp_path / "c.json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    (case,) = json.loads((tmp_path / "c.json").read_text())["cases"].values()
    assert case["calls"] > case["calls_without"] > 0
    assert 0 < case["bytes"] < 1000


def test_operators(dry):
    found, printed = dry(operators, *PAIR)
    case = found["cases"]["espnet_c_from_espnet"]
    assert case["pi_pa_ho"]["operators"] > case["pi_pa"]["operators"] > 100
    assert case["pi_pa"]["asking"] == {}
    assert "| espnet_c_from_espnet |" in printed


def test_shards(dry):
    found, printed = dry(shards)
    assert set(found["sets"]["480x360 png"]["images_per_s"]) == {"folder", "shards"}
    assert found["sets"]["2048x1024 jpeg"]["time_over_folder"]["count"] == 2
    assert "| 2048x1024 png |" in printed


@pytest.mark.slow  # a process for each arm
def test_levers(dry):
    found, _ = dry(levers, *PAIR, "--lever", "allocator_untouched", "channels_last")
    case = found["cases"]["espnet_c_from_espnet"]
    assert set(case["ratio"]) == {"allocator_untouched", "channels_last"}


@pytest.mark.slow  # a process for each form and size
def test_pair_wise(dry):
    found, printed = dry(pair_wise)
    size = found["channels"]["16"]["512"]
    assert size["relative_difference"] < 1e-5
    assert size["times_faster"]["count"] == 2
    # Two matrices and their difference; a few maps.
    assert size["extra_bytes"]["plain"]["tensors"] > 3 * 4 * 512**2
    assert size["extra_bytes"]["densekd"]["tensors"] < 20 * 4 * 16 * 512
    assert set(found["exponents"]["16"]) == {"plain", "densekd"}
    assert found["forms"][0]["asked"] == "softmax"
    assert all(e["densekd"]["value"] < 1e-5 for e in found["errors"] if e["noise"] >= 1e-3)
    assert "| cosine | 16 | 512 |" in printed


def test_a_power_is_fitted():
    assert pair_wise.exponent([10, 20, 40], [300, 1200, 4800]) == pytest.approx(2)
    assert pair_wise.exponent([10], [300]) is None


def test_pack_camvid(tmp_path):
    source, target = tmp_path / "camvid", tmp_path / "packed"
    for name in ("train", "trainannot"):
        (source / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, (24, 32), dtype=np.uint8)
    Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(source / "train/a.png")
    Image.fromarray(labels).save(source / "trainannot/a.png")
    (source / "train.txt").write_text(
        "/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n"
    )
    assert pack_camvid.pack(source, target) == 1
    before, after = CamVid(source).read(0), CamVid(target).read(0)
    assert (target / "train/a.jpg").exists()
    assert np.array_equal(before.target, after.target)
    assert np.abs(before.image.astype(int) - after.image).mean() < 12  # noise is JPEG's worst case
    with pytest.raises(SystemExit, match="exists"):
        pack_camvid.pack(source, target)


def test_the_plan_fits_the_budget(tmp_path):
    """200 short steps: 15 s of start-up, 10 s for 100 cold and 5 s for 100 warm steps, 2 s an evaluation."""
    folder = RunFolder(tmp_path)
    rows = [{"step": 100, "images_per_s": 80.0}, {"step": 200, "images_per_s": 160.0}]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.result.write_text(json.dumps({"seconds": 17.0}))
    steps = gpu.plan(folder, 8, 540.0, 20, 32.0)
    assert steps == int(0.95 * (540 - 32 - gpu.RESERVE - 15 - 20 * 2) * 20)


@pytest.mark.slow
def test_gpu_dry(tmp_path):
    """`make gpu DRY=1`; the scripts that are stages too have tests of their own."""
    stages = ["tests", "step", "teacher", "student"]
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.gpu", "--dry", "--steps", "2", "--output", str(tmp_path / "out"),
            "--stage", *stages,
        ],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in stages:
        found = json.loads((tmp_path / "out" / f"{stage}.json").read_text())
        assert found["status"] == 0
        assert found["environment"]["versions"]["torch"]
        assert str(tmp_path) not in json.dumps(found.get("result"))
    assert found["result"]["step"] == 2
    assert found["seconds_to_miou"] == {"0.614": None, "0.651": None}
    assert (tmp_path / "out" / "student.safetensors").exists()


@pytest.mark.slow  # six arms, and levers timed before
def test_peers(dry, monkeypatch, tmp_path):
    monkeypatch.setenv("DENSEKD_CACHE", str(tmp_path))
    found, printed = dry(peers)
    pair = found["pairs_of_networks"]["dry"]
    assert {"plain", "densekd pi", "densekd pi_pa"} <= set(pair["seconds"])
    assert found["torchdistill"] is None
    assert "torchdistill" not in pair["seconds"], "it is no package of densekd's"
    assert "| dry | plain |" in printed
