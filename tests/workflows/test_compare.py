"""`densekd compare` on tiny runs: pictures, truth, times, videos, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import densekd
from densekd.cli.main import main
from densekd.errors import UserError
from densekd.report.moving import save_moving
from densekd.workflows.compare_inputs import spread
from densekd.workflows.open_model import model_titles, split_name

WIDTH = 64


@pytest.fixture
def images(tmp_path) -> Path:
    """Three images and their labels, classes 0 and 1, a corner of 250 that no class has."""
    draw = np.random.default_rng(0)
    for name in "abc":
        pixels = draw.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        labels = draw.integers(0, 2, (40, 56), dtype=np.uint8)
        labels[:4, :4] = 250
        for folder, content in (("images", pixels), ("labels", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(content).save(tmp_path / folder / f"{name}.png")
    return tmp_path / "images"


def compare(*words: object) -> int:
    return main(["compare", *map(str, words), "--device", "cpu", "--width", str(WIDTH)])


def expected_score(model, images: Path) -> float:
    """mIoU over all images, counted by hand."""
    hit, union = np.zeros(len(model.classes)), np.zeros(len(model.classes))
    for file in images.iterdir():
        answer = model.predict(file)
        truth = np.asarray(Image.open(images.parent / "labels" / file.name))
        known = truth < len(model.classes)
        for k in range(len(model.classes)):
            hit[k] += (known & (answer == k) & (truth == k)).sum()
            union[k] += (known & ((answer == k) | (truth == k))).sum()
    return float((hit[union > 0] / union[union > 0]).mean())


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".png", ".mp4"])
def test_answers_stand_side_by_side(runs, images, tmp_path, capsys, suffix):
    out = tmp_path / f"demo{suffix}"
    run = runs / "segmentation"
    labels = ("--labels", images.parent / "labels")
    assert compare(run, run, "--input", images, *labels, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["frames"], said["frames_with_truth"]) == (3, 3)
    expected = expected_score(densekd.load(run), images)
    assert [row["scores"]["miou"] for row in said["models"]] == pytest.approx([expected] * 2)
    assert all(row["milliseconds"] > 0 for row in said["models"])
    wide = 4 * (WIDTH + 4) + 4  # image, truth and two answers
    if suffix == ".mp4":
        video = cv2.VideoCapture(str(out))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
        assert video.get(cv2.CAP_PROP_FRAME_WIDTH) == wide
        return
    picture = Image.open(out)
    assert getattr(picture, "n_frames", 1) == (1 if suffix == ".png" else 3)
    assert picture.width == wide


def test_the_table_by_class_has_a_column_a_network(runs, images, tmp_path, capsys):
    run, table = runs / "segmentation", tmp_path / "table.md"
    words = (run, run, "--names", "a", "b", "--input", images, "--table", table, "--json")
    assert compare(*words, "--out", tmp_path / "a.png") == 2
    assert "--table: wants truth" in capsys.readouterr().err
    labels = ("--labels", images.parent / "labels")
    assert compare(*words, *labels, "--out", tmp_path / "a.png") == 0
    said = json.loads(capsys.readouterr().out)
    lines = table.read_text().splitlines()
    model = densekd.load(run)
    assert lines[0] == "|  | a | b | change |"
    assert len(lines) == 2 + len(model.classes) + 1
    iou = said["models"][0]["scores"]["iou"][model.classes[0]]
    assert lines[2] == f"| {model.classes[0]} | {100 * iou:.2f} | {100 * iou:.2f} | +0.00 |"
    miou = said["models"][0]["scores"]["miou"]
    assert lines[-1] == f"| mIoU | {100 * miou:.2f} | {100 * miou:.2f} | +0.00 |"


def test_detection_and_depth_take_the_truth_of_their_recipe(runs, tmp_path, capsys):
    for task, key in (("detection", "ap"), ("depth", "abs_rel")):
        out = tmp_path / f"{task}.png"
        config = runs / task / "config.yaml"
        assert compare(runs / task, "--recipe", config, "--out", out, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert said["frames_with_truth"] == said["frames"] == 2
        scores = densekd.evaluate(runs / task, device="cpu")
        assert said["models"][0]["scores"][key] == pytest.approx(scores[key], abs=1e-6)


def test_a_video_is_compared_frame_by_frame(runs, tmp_path, capsys):
    frames = [Image.new("RGB", (64, 48), (40 * i, 0, 0)) for i in range(5)]
    assert save_moving(tmp_path / "drive.mp4", frames, rate=5) == 5
    words = (runs / "segmentation", "--input", tmp_path / "drive.mp4", "--frames", 2)
    assert compare(*words, "--out", tmp_path / "a.webp") == 0
    assert "2 frames in" in capsys.readouterr().out
    assert Image.open(tmp_path / "a.webp").n_frames == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "a.jpg"], "ends with .webp, .gif, .mp4, .png"),
        (["--out", "a.png"], "on which images"),
        (["--out", "a.png", "--input", "nothing.png"], "does not exist"),
        (["--out", "a.png", "--input", "x.mp4", "--names", "a", "b"], "--names: 2 given for 1"),
        (["--out", "a.png", "--input", "x.mp4", "--frames", "0"], "--frames 0"),
        (
            ["--out", "a.png", "--input", "x.mp4", "--labels", "none"],
            "--labels none: no such folder",
        ),
    ],
)
def test_what_is_missing_is_said(runs, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert compare(runs / "segmentation", *words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))


def test_models_of_two_tasks_are_refused(runs, images, tmp_path, capsys):
    words = ("--input", images, "--out", tmp_path / "a.png")
    assert compare(runs / "segmentation", runs / "depth", *words) == 2
    assert "compare models of one task" in capsys.readouterr().err


def test_a_file_may_name_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, recipe = split_name("a.pth@camvid/espnet")
    assert (path, recipe.model.name) == (Path("a.pth"), "espnet")
    Path("a@b.pth").touch()
    assert split_name("a@b.pth") == (Path("a@b.pth"), None)
    assert model_titles(["x/a.pth@camvid/espnet", "runs/b"]) == ["a", "b"]
    with pytest.raises(UserError, match=r"espnot"):
        split_name("a.pth@camvid/espnot")


def test_frames_are_evenly_apart():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 8) == spread(range(3), None) == [0, 1, 2]
    assert spread(range(5), 1) == [0]


def test_the_authors_checkpoints_side_by_side(shared, tmp_path, capsys):
    folder = shared / "checkpoints" / "espnet_camvid"
    models = [
        folder / f"{name}.pth@camvid/espnet"
        for name in ("ESPNet_base", "ESPNet_pixel_pair_unlabelled")
    ]
    out = tmp_path / "a.png"
    words = ("--recipe", "camvid/espnet", "--data.root", shared / "camvid", "--frames", 1)
    assert compare(*models, *words, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert all(row["scores"]["miou"] > 0.6 and row["note"] == "saw val" for row in said["models"])
