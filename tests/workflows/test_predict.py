"""`densekd predict` on real runs of the three tasks: the files, going on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import densekd
from densekd.cli.main import main
from densekd.errors import UserError
from densekd.workflows.predict_inputs import find_inputs
from tests.workflows.test_functions import TASKS, tree_of

SIZE = (40, 56)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a finished run a task."""
    out = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        tree = tree_of(task)
        if task == "detection":
            tree["task"]["shown_above"] = 0.0
        densekd.train(tree, name=task, out=out, device="cpu")
    return out


@pytest.fixture
def images(tmp_path) -> Path:
    """Two images, one in a folder below."""
    folder = tmp_path / "images"
    (folder / "north").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("7.png", "north/12.jpg"):
        pixels = draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def predict(*words: object) -> int:
    return main(["predict", *map(str, words), "--device", "cpu"])


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_segmentation_writes_indices_colours_and_overlays(runs, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(runs / "segmentation", images, "--out", out) == 0
    assert "images/s" in capsys.readouterr().out
    model = densekd.load(runs / "segmentation")
    for name, source in (("7.png", "7.png"), ("north/12.png", "north/12.jpg")):
        expected = model.predict(images / source)
        index, colour = read(out / "index" / name), read(out / "colour" / name)
        assert index.dtype == np.uint8
        assert np.array_equal(index, expected)
        assert np.array_equal(colour, np.array(model.palette, np.uint8)[expected])
        image = np.asarray(Image.open(images / source)).astype(float)
        assert np.abs(read(out / "overlay" / name) - (image + colour) / 2).max() <= 0.5
    assert json.loads((out / "predict.json").read_text())["answers"]["classes"] == model.classes


def test_depth_is_written_in_stated_units(runs, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(runs / "depth", images, "--out", out) == 0
    stated = "metres = value of the 16-bit PNG / 1000"
    assert stated in capsys.readouterr().out
    assert json.loads((out / "predict.json").read_text())["depth"] == stated
    written = read(out / "metres" / "7.png")
    expected = densekd.load(runs / "depth").predict(images / "7.png")
    assert written.dtype == np.uint16
    assert np.abs(written / 1000 - expected).max() <= 0.00051
    assert read(out / "colour" / "7.png").shape == (*SIZE, 3)


def test_detection_draws_and_writes_coco_results(runs, images, tmp_path):
    out = tmp_path / "out"
    assert predict(runs / "detection", images, "--out", out) == 0
    found = json.loads((out / "results.json").read_text())
    listed = json.loads((out / "images.json").read_text())
    assert [(i["id"], i["file_name"]) for i in listed["images"]] == [
        (7, "7.png"),
        (12, "north/12.jpg"),
    ]
    model = densekd.load(runs / "detection")
    answer = model.predict(images / "7.png")
    own = [box for box in found if box["image_id"] == 7]
    assert len(own) == len(answer["boxes"]) > 0
    x0, y0, x1, y1 = answer["boxes"][0]
    assert own[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-3)
    assert own[0]["score"] == pytest.approx(answer["scores"][0], abs=1e-5)
    names = {c["id"]: c["name"] for c in listed["categories"]}
    assert names[own[0]["category_id"]] == model.classes[answer["labels"][0]]
    assert not np.array_equal(read(out / "drawn" / "7.png"), read(images / "7.png"))


def test_it_goes_on_where_it_stopped_and_reports_as_json(runs, images, tmp_path, capsys):
    out = tmp_path / "out"
    words = (runs / "segmentation", images, "--out", out, "--json")
    assert predict(*words, "--only", "index") == 0
    kept = out / "index" / "7.png"
    kept.write_bytes(b"as it was")
    (out / "index" / "north" / "12.png").unlink()
    capsys.readouterr()
    assert predict(*words, "--only", "index") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["written"], said["skipped"], said["files"]) == (1, 1, ["index"])
    assert kept.read_bytes() == b"as it was"
    assert not (out / "colour").exists()
    assert predict(*words) == 0  # the other files of both images
    assert json.loads(capsys.readouterr().out)["written"] == 2
    assert kept.read_bytes() == b"as it was"


def test_results_are_of_all_calls(runs, images, tmp_path):
    out = tmp_path / "out"
    for source in ("7.png", "north/12.jpg"):
        assert predict(runs / "detection", images / source, "--out", out, "--only", "results") == 0
    found = json.loads((out / "results.json").read_text())
    assert {box["image_id"] for box in found} == {7, 12}
    assert not (out / "drawn").exists()


def test_unreadable_images_are_listed_with_status_1(runs, images, tmp_path, capsys):
    (images / "bad.png").write_bytes(b"no image")
    assert predict(runs / "segmentation", images, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().out
    assert "1 could not be read" in said
    assert "bad.png" in said
    assert (tmp_path / "out" / "index" / "7.png").exists()


def test_folders_of_others_are_refused(runs, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(runs / "segmentation", images, "--out", out) == 0
    files = sorted(out.rglob("*"))
    assert predict(runs / "depth", images, "--out", out) == 2
    said = capsys.readouterr().err
    assert "another model" in said
    assert "weights_sha256" in said
    assert sorted(out.rglob("*")) == files
    assert predict(runs / "segmentation", images / "7.png", "--out", images) == 2
    assert predict(runs / "segmentation", images, "--out", tmp_path / "b", "--only", "metres") == 2
    assert "possible: index, colour, overlay" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_run_needs_no_recipe(runs, images, tmp_path, capsys):
    words = (runs / "segmentation", images, "--out", tmp_path / "out")
    assert predict(*words, "--recipe", "camvid/espnet") == 2
    assert "leave --recipe out" in capsys.readouterr().err


def test_inputs_keep_their_relative_path(images, tmp_path):
    out = tmp_path / "out"

    def names(*given: object) -> list[str]:
        return [i.output.as_posix() for i in find_inputs([str(g) for g in given], out)]

    assert names(images) == ["7.png", "north/12.png"]
    assert names(images / "north" / "12.jpg") == ["12.png"]
    assert names(images / "**" / "*.jpg") == ["north/12.png"]
    assert names(tmp_path / "i*") == ["images/7.png", "images/north/12.png"]
    assert names(images, images / "7.png") == ["7.png", "north/12.png"]  # one file, given twice


def test_what_lies_in_out_is_no_input(images):
    found = find_inputs([str(images)], images / "north")
    assert [i.name.as_posix() for i in found] == ["7.png"]


def test_two_inputs_may_not_write_one_file(images, tmp_path):
    Image.open(images / "7.png").save(images / "7.bmp")
    with pytest.raises(UserError, match=r"7\.bmp and .*7\.png would both be written as 7\.png"):
        find_inputs([str(images)], tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "word"),
    [("nothing.png", "does not exist"), ("*.png", "matches nothing"), (".", "holds no image")],
)
def test_an_input_without_images_is_named(given, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=word):
        find_inputs([given], tmp_path / "out")


def test_the_authors_checkpoint_takes_a_recipe(shared, tmp_path, capsys):
    weights = shared / "checkpoints" / "espnet_camvid" / "ESPNet_base.pth"
    image = min((shared / "camvid" / "val").glob("*.png"))
    out = tmp_path / "out"
    assert predict(weights, image, "--out", out) == 2
    assert "--recipe camvid/espnet" in capsys.readouterr().err
    assert predict(weights, image, "--out", out, "--recipe", "camvid/espnet") == 0
    index = read(out / "index" / image.name)
    truth = read(shared / "camvid" / "valannot" / image.name)
    assert (index == truth)[truth != 11].mean() > 0.9
