"""`densekd predict --submission cityscapes`, videos and cameras."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import densekd
from densekd.cli.main import main
from densekd.data import video
from densekd.data.sets.cityscapes import CLASSES, PALETTE, to_label_ids
from densekd.errors import UserError
from densekd.report.moving import save_moving
from densekd.tasks import Segmentation
from densekd.workflows import submission
from densekd.workflows.predict_inputs import Input, find_all
from tests.workflows.test_functions import tree_of

SIZE = (64, 32)  # stands in for the server's


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return densekd.train(tree_of("segmentation"), name="a", out=out, device="cpu").folder


@pytest.fixture
def split(tmp_path, monkeypatch) -> list[Input]:
    """Three images named as Cityscapes'."""
    monkeypatch.setattr(submission, "SIZE", SIZE)
    folder = tmp_path / "leftImg8bit" / "test" / "berlin"
    folder.mkdir(parents=True)
    items = []
    for number in range(3):
        name = f"berlin_000000_{number:06}_leftImg8bit.png"
        Image.new("RGB", SIZE).save(folder / name)
        items.append(Input(folder / name, Path("berlin", name)))
    return items


def task(classes: list[str] = CLASSES) -> Segmentation:
    return Segmentation(classes, PALETTE[: len(classes)])


def write(out: Path, items: list[Input], labels: np.ndarray) -> None:
    for item in items:
        path = out / submission.KIND / item.output
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(path)


def test_the_zip_has_the_servers_names_and_ids(split, tmp_path):
    submission.check_submission(task(), split)
    answer = np.random.default_rng(0).integers(0, 19, (SIZE[1], SIZE[0]))
    labels = submission.label_ids(task(), np.zeros(0), answer)
    assert np.array_equal(labels, to_label_ids(answer))
    write(tmp_path / "out", split, labels)
    lines = submission.write_submission(tmp_path / "out", task(), split)
    assert "3 images zipped" in lines[0]
    assert "the whole test split has 1525 images" in lines[1]
    with zipfile.ZipFile(tmp_path / "out" / submission.ZIP) as archive:
        names = archive.namelist()
        assert names == [f"berlin_000000_{n:06}_pred_labelIds.png" for n in range(3)]
        with archive.open(names[0]) as file:
            assert np.array_equal(np.asarray(Image.open(file)), labels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros((8, 8), np.uint8), "is 8x8"),
        (np.full((SIZE[1], SIZE[0]), 34, np.uint8), "has ids 34"),
        (None, "has no answer"),
    ],
)
def test_wrong_answers_are_not_zipped(split, tmp_path, labels, said):
    if labels is not None:
        write(tmp_path / "out", split, labels)
    with pytest.raises(UserError, match=said):
        submission.write_submission(tmp_path / "out", task(), split)
    assert not (tmp_path / "out" / submission.ZIP).exists()


def test_other_classes_names_and_sizes_are_refused_before_any_work(split, tmp_path, run, capsys):
    with pytest.raises(UserError, match="with lamp"):
        submission.check_submission(Segmentation(["road", "lamp"], PALETTE[:2]), split)
    Image.new("RGB", (9, 9)).save(split[1].path)
    with pytest.raises(UserError, match=r"of another size: .*\(9x9\)"):
        submission.check_submission(task(), split)
    with pytest.raises(UserError, match="not named as"):
        submission.check_submission(task(), [Input(tmp_path / "a.png", Path("a.png"))])
    with pytest.raises(UserError, match="given twice"):
        submission.check_submission(task(), [split[0], split[0]])
    words = [
        "predict",
        str(run),
        str(split[0].path),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main([*words, "--submission", "cityscapes"]) == 2
    assert "Cityscapes' classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def drive(tmp_path) -> Path:
    """Four frames, ever brighter."""
    path = tmp_path / "drive.mp4"
    save_moving(path, (Image.new("RGB", (64, 48), (60 * i,) * 3) for i in range(4)), rate=8)
    return path


def test_a_video_is_written_frame_by_frame_and_joined(run, drive, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["predict", str(run), str(drive), "--out", str(out), "--device", "cpu", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["written"]) == (4, 4)
    assert sorted(Path(p).parent.name for p in said["videos"]) == ["colour", "overlay"]
    frames = list(video.frames(drive))
    expected = densekd.load(run).predict(frames[2])
    assert np.array_equal(np.asarray(Image.open(out / "index" / "drive" / "000002.png")), expected)
    assert video.frame_count(out / "overlay" / "drive.mp4") == 4
    (out / "index" / "drive" / "000001.png").unlink()
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["written"], said["skipped"], said["videos"]) == (1, 3, [])


def test_a_camera_gives_frames_until_it_is_stopped(run, drive, tmp_path, monkeypatch, capsys):
    file = cv2.VideoCapture
    monkeypatch.setattr(
        video.cv2, "VideoCapture", lambda number: file(str(drive)) if number == 0 else None
    )
    out = tmp_path / "out"
    words = ["predict", str(run), "0", "--out", str(out), "--device", "cpu", "--only", "overlay"]
    assert main([*words, "--frames", "2"]) == 0
    (folder,) = [path for path in (out / "overlay").iterdir() if path.is_dir()]
    assert folder.name.startswith("camera-")
    assert len(list(folder.iterdir())) == 2


def test_videos_are_told_from_images(drive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    found, moving = find_all(["a.png", "drive.mp4", "0", "/dev/video1"], Path("out"))
    assert [item.path.name for item in found] == ["a.png"]
    assert moving == ["drive.mp4", "0", "/dev/video1"]
    with pytest.raises(UserError, match=r"none\.mp4 does not exist"):
        find_all(["none.mp4"], Path("out"))
    Path("b").mkdir()
    Path("b/drive.avi").touch()
    with pytest.raises(UserError, match="into the folder drive"):
        find_all(["drive.mp4", "b/drive.avi"], Path("out"))


def test_the_published_network_on_real_cityscapes_names(shared, tmp_path, run):
    """Real files of a training split pass every check of names and sizes."""
    items = [
        Input(path, Path(path.name))
        for path in sorted((shared / "data" / "cityscapes_mini" / "leftImg8bit").rglob("*.png"))
    ]
    assert len(items) == 5
    submission.check_submission(task(), items)
    write(tmp_path, items, np.full((1024, 2048), 7, np.uint8))
    lines = submission.write_submission(tmp_path, task(), items)
    assert "the whole train split has 2975 images" in lines[1]
