"""examples/normals: a task that the package does not know trains, distils, evaluates and resumes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from normals.data import NormalScenes
from normals.loss import angular
from normals.metric import AngleErrors
from normals.target import NormalMap, normals_of
from normals.task import Normals

from densekd.cli.main import main as densekd
from densekd.engine.checkpoint import load_checkpoint
from densekd.engine.trainer import Training
from densekd.targets import DepthTarget
from densekd.types import Batch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "normals"
CAMERA = (50.0, 55.0, 20.0, 10.0)
SMALL = [
    "--data.options", "{length: 4, height: 48, width: 96}", "--data.crop", "[48, 96]", "--data.batch_size", "2",
    "--train.steps", "4", "--train.save_every", "2", "--train.log_every", "1", "--optim.warmup_steps", "1",
    "--evaluate.batch_size", "2", "--device", "cpu",
]  # fmt: skip
# The smallest network on both sides.
BACKBONE = "{backbone: test_resnet, pyramid_channels: 16}"


def plane(normal: np.ndarray, distance: float, size: tuple[int, int] = (21, 41)) -> np.ndarray:
    """The depth of the points X with normal · X = distance."""
    fx, fy, cx, cy = CAMERA
    rows, columns = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones(size)], axis=2)
    return (distance / (rays @ normal)).astype(np.float32)


def test_the_normal_of_a_plane_points_to_the_camera():
    normal = np.array([0.36, 0.48, 0.8])
    found = normals_of(plane(normal, 5.0), CAMERA)
    np.testing.assert_allclose(found[1:-1, 1:-1], np.broadcast_to(-normal, (19, 39, 3)), atol=1e-4)
    assert not found[0].any()
    assert not found[:, -1].any()


def test_a_step_in_depth_has_no_normal():
    depth = np.full((9, 9), 2.0, np.float32)
    depth[:, 5:] = 4.0
    known = normals_of(depth, CAMERA).any(axis=2)
    assert known[4].tolist() == [False, True, True, True, False, False, True, True, False]


def test_normals_move_as_the_depth_under_them():
    depth = DepthTarget(plane(np.array([0.36, 0.48, 0.8]), 5.0), CAMERA)
    target = NormalMap(normals_of(depth.depth, CAMERA))
    for moved, turned in (
        (depth.flip(41), target.flip(41)),
        (depth.resize((21, 41), (21, 41), 1.3), target.resize((21, 41), (21, 41), 1.3)),
        (depth.crop(2, 3, 10, 12), target.crop(2, 3, 10, 12)),
    ):
        expected = normals_of(np.ascontiguousarray(moved.depth), moved.intrinsics)
        both = expected.any(axis=2) & turned.normals.any(axis=2)
        assert both.any()
        np.testing.assert_allclose(turned.normals[both], expected[both], atol=1e-3)


def test_angles_by_hand():
    truth = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]).T.reshape(
        1, 3, 1, 3
    )
    predicted = torch.tensor([[0.0, 0.0, -2.0], [0.0, 1.0, -1.0], [1.0, 0.0, 0.0]]).T.reshape(
        1, 3, 1, 3
    )
    ones = torch.ones(1, 1, 3, dtype=torch.bool)
    batch = Batch(torch.zeros(1, 3, 1, 3), truth, torch.tensor([True]), ones, [""])
    errors = AngleErrors()
    errors.update(predicted, batch)
    scores = errors.compute()
    assert scores["angle"] == pytest.approx(22.5, abs=1e-4)  # 0° and 45°; the third is unknown
    assert scores["below_30"] == 0.5
    assert angular(predicted, truth, ones & truth.any(1)).item() == pytest.approx(
        (1 - 0.5**0.5) / 2
    )


def test_the_set_gives_unit_vectors():
    normals = NormalScenes(length=1, height=48, width=96).read(0).target.normals
    lengths = np.linalg.norm(normals, axis=2)
    np.testing.assert_allclose(lengths[lengths > 0], 1, atol=1e-5)
    assert Normals().constant_guess([(NormalMap(normals), (48, 96))]).shape == (1, 3, 32, 1)


def run(verb: str, recipe: str, out: Path, name: str, *more: str) -> Path:
    words = [
        verb, str(FOLDER / recipe), "--out", str(out), "--name", name, "--model.options", BACKBONE, *SMALL, *more
    ]  # fmt: skip
    assert densekd(words) == 0
    return out / name


def test_it_trains_distils_resumes_and_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DENSEKD_CACHE", str(tmp_path / "cache"))
    assert densekd(["data", "check", str(FOLDER / "teacher.yaml"), *SMALL[:2]]) == 0
    assert "normals      known at" in capsys.readouterr().out
    teacher = run("train", "teacher.yaml", tmp_path, "teacher") / "checkpoints/student.safetensors"
    distil = [
        "--teacher.options", BACKBONE, "--teacher.weights", str(teacher), "--data.cache", "disk",
        "--data.augment_epochs", "2", "--distill.teacher_cache.storage", "fp16",
    ]  # fmt: skip
    whole = run("distill", "student.yaml", tmp_path, "whole", *distil)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    assert {"task/angular", "distill/direction", "distill/pair_wise", "distill/holistic",
            "discriminator/penalty"} <= set(rows[0])  # fmt: skip
    assert rows[-1]["val/angle"] > 0

    original = Training.save

    def die(self):
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", die)
        words = ["distill", str(FOLDER / "student.yaml"), "--out", str(tmp_path), "--name", "parts"]
        assert densekd([*words, "--model.options", BACKBONE, *SMALL, *distil]) == 130
    parts = run("distill", "student.yaml", tmp_path, "parts", *distil, "--resume")
    files = ("checkpoints/student.safetensors", "checkpoints/best.safetensors")
    assert all((whole / file).read_bytes() == (parts / file).read_bytes() for file in files)
    one, two = (load_checkpoint(folder / "checkpoints/last.pt") for folder in (whole, parts))
    assert one["step"] == two["step"] == 4

    scores = tmp_path / "scores.json"
    words = [
        "evaluate",
        str(FOLDER / "student.yaml"),
        "--weights",
        str(whole / files[0]),
        "--output",
        str(scores),
    ]
    assert densekd([*words, "--model.options", BACKBONE, *SMALL[:2], "--device", "cpu"]) == 0
    found = json.loads(scores.read_text())
    assert found["angle"] == pytest.approx(rows[-1]["val/angle"], rel=1e-6)
    assert set(found) > {"below_11.25", "below_22.5", "below_30"}
