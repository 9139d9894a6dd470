"""The embedded scenes: pure, exact, varied, and readable as Cityscapes."""

import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from densekd.errors import UserError
from densekd.scenes import (
    BOX_CLASSES,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_TRAIN_IDS,
    CLASSES,
    PALETTE,
    render_scene,
    write_cityscapes,
)

ROAD, SIDEWALK, SKY = (CLASSES.index(name) for name in ("road", "sidewalk", "sky"))


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(7, index) for index in range(50)]


def test_same_numbers_give_the_same_scene(scenes):
    again = render_scene(7, 3)
    for name in ("image", "labels", "depth", "boxes", "box_labels", "instances"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scenes[3], name))


def test_another_process_draws_the_same_scene(scenes):
    # Drawn there without its predecessors: nothing may depend on what was drawn before.
    code = (
        "import zlib; from densekd.scenes import render_scene; s = render_scene(7, 3);"
        "print(zlib.crc32(s.image.tobytes()), zlib.crc32(s.depth.tobytes()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [zlib.crc32(scenes[3].image.tobytes()), zlib.crc32(scenes[3].depth.tobytes())]
    assert run.stdout.split() == [str(value) for value in here]


def test_other_numbers_give_other_scenes(scenes):
    for other in (render_scene(8, 3), scenes[4]):
        assert (other.labels != scenes[3].labels).mean() > 0.05
        assert np.abs(other.image.astype(int) - scenes[3].image).mean() > 5


def test_shapes_and_types(scenes):
    scene = scenes[0]
    assert scene.image.shape == (128, 256, 3)
    assert scene.image.dtype == np.uint8
    assert scene.labels.shape == scene.depth.shape == scene.instances.shape == (128, 256)
    assert scene.labels.dtype == np.uint8
    assert scene.depth.dtype == np.float32
    assert scene.boxes.dtype == np.float32
    assert scene.box_labels.dtype == np.int64
    assert len(PALETTE) == len(CLASSES) == 9


@pytest.mark.parametrize(("height", "width"), [(97, 161), (16, 16), (64, 200), (200, 64)])
def test_any_size(height, width):
    for index in range(3):
        scene = render_scene(1, index, height=height, width=width)
        assert scene.image.shape == (height, width, 3)
        assert scene.labels.shape == (height, width)
        assert np.isfinite(scene.depth).all()


def test_a_larger_picture_shows_the_same_scene(scenes):
    for index in (0, 1, 2):
        large = render_scene(7, index, height=256, width=512)
        agree = large.labels[::2, ::2] == scenes[index].labels
        assert agree.mean() > 0.93
        assert large.intrinsics[0] == pytest.approx(2 * scenes[index].intrinsics[0])


def test_every_class_occurs_with_a_plausible_share(scenes):
    labels = np.stack([scene.labels for scene in scenes])
    share = {name: (labels == i).mean() for i, name in enumerate(CLASSES)}
    for name, (low, high) in {
        "road": (0.2, 0.5),
        "sidewalk": (0.03, 0.2),
        "building": (0.1, 0.45),
        "sky": (0.05, 0.35),
        "vegetation": (0.04, 0.3),
        "car": (0.03, 0.2),
        "person": (0.003, 0.05),
        "pole": (0.003, 0.05),
        "sign": (0.001, 0.03),
    }.items():
        assert low < share[name] < high, (name, share[name])
    assert set(np.unique(labels)) <= {*range(9), 255}
    assert (labels == 255).mean() < 0.03


def test_pictures_are_neither_black_nor_burnt_out(scenes):
    means = [scene.image.mean() for scene in scenes]
    assert min(means) > 15
    assert max(means) < 230
    assert np.std(means) > 15


def test_depth_is_missing_on_sky_and_bonnet_only(scenes):
    for scene in scenes:
        np.testing.assert_array_equal(scene.depth == 0, np.isin(scene.labels, (SKY, 255)))
        seen = scene.depth[scene.depth > 0]
        assert seen.min() > 0.5
        assert seen.max() < 255  # what a 16-bit PNG of 1/256 m can hold


def test_ground_depth_is_that_of_the_plane(scenes):
    for scene in scenes[:10]:
        fx, fy, cx, cy = scene.intrinsics
        rows, columns = np.nonzero(scene.labels == ROAD)
        rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones(len(rows))], 1)
        downwards = -(rays @ scene.camera_rotation)[:, 1]
        expected = scene.camera_position[1] / downwards
        np.testing.assert_allclose(scene.depth[rows, columns], expected, rtol=2e-3)


def test_boxes_are_tight_around_what_is_seen(scenes):
    for scene in scenes:
        names = [CLASSES[label] for label in scene.box_labels]
        assert set(names) <= set(BOX_CLASSES)
        assert scene.instances.max() == len(scene.boxes)
        for number, (box, label) in enumerate(zip(scene.boxes, scene.box_labels, strict=True), 1):
            rows, columns = np.nonzero(scene.instances == number)
            tight = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_array_equal(box, tight)
            assert set(scene.labels[rows, columns]) == {label}
    assert 4 < np.mean([len(scene.boxes) for scene in scenes]) < 30


def test_instances_cover_the_countable_classes(scenes):
    countable = [CLASSES.index(name) for name in BOX_CLASSES]
    for scene in scenes[:10]:
        np.testing.assert_array_equal(scene.instances != 0, np.isin(scene.labels, countable))


def test_nearer_than_the_ground_behind(scenes):
    """What stands on the ground is in front of the ground plane at its pixels."""
    for scene in scenes[:10]:
        fx, fy, cx, cy = scene.intrinsics
        rows, columns = np.nonzero(scene.labels == CLASSES.index("car"))
        rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones(len(rows))], 1)
        downwards = -(rays @ scene.camera_rotation)[:, 1]
        below = downwards > 0.01
        ground = scene.camera_position[1] / downwards[below]
        assert (scene.depth[rows, columns][below] < ground + 0.3).all()


@pytest.mark.parametrize("bad", [{"height": 8}, {"width": 15}])
def test_too_small_is_refused(bad):
    with pytest.raises(UserError, match="at least 16"):
        render_scene(0, 0, **bad)


def test_write_cityscapes(tmp_path):
    root = tmp_path / "scenes"
    splits = {"train": 3, "val": 2}
    write_cityscapes(root, splits=splits, seed=5, height=48, width=96)
    names = {}
    for split, count in splits.items():
        images = sorted((root / "leftImg8bit" / split / "scenes").iterdir())
        assert len(images) == count
        names[split] = {path.name.removesuffix("_leftImg8bit.png") for path in images}
        assert len(list((root / "gtFine" / split / "scenes").iterdir())) == 3 * count
    assert not names["train"] & names["val"]
    assert names["val"] == {"scenes_000003_000000", "scenes_000004_000000"}

    scene = render_scene(5, 3, height=48, width=96)
    stem = "val/scenes/scenes_000003_000000"

    def read(kind: str, suffix: str) -> np.ndarray:
        return np.array(Image.open(root / kind / f"{stem}_{suffix}.png"))

    np.testing.assert_array_equal(read("leftImg8bit", "leftImg8bit"), scene.image)
    label_ids, train_ids = read("gtFine", "gtFine_labelIds"), read("gtFine", "gtFine_labelTrainIds")
    for label in np.unique(scene.labels[scene.labels < 9]):
        where = scene.labels == label
        assert set(label_ids[where]) == {CITYSCAPES_LABEL_IDS[label]}
        assert set(train_ids[where]) == {CITYSCAPES_TRAIN_IDS[label]}
    colour = read("gtFine", "gtFine_color")
    np.testing.assert_array_equal(
        colour[scene.labels == ROAD],
        np.broadcast_to(PALETTE[ROAD], (int((scene.labels == ROAD).sum()), 3)),
    )
    depth = read("depth", "depth")
    assert depth.dtype == np.uint16
    np.testing.assert_allclose(depth / 256, scene.depth, atol=1 / 256)

    coco = json.loads((root / "annotations" / "instances_val.json").read_text())
    assert {row["name"] for row in coco["categories"]} == set(BOX_CLASSES)
    rows = [row for row in coco["annotations"] if row["image_id"] == 3]
    boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
    np.testing.assert_array_equal(boxes[:, 2:], scene.boxes[:, 2:] - scene.boxes[:, :2])
    ids = [row["id"] for row in coco["annotations"]]
    assert len(ids) == len(set(ids))
    assert "seed: 5" in (root / "README.txt").read_text()


def test_ids_are_those_of_cityscapes():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").name2label
    theirs = [labels["traffic sign" if name == "sign" else name] for name in CLASSES]
    assert [row.id for row in theirs] == list(CITYSCAPES_LABEL_IDS)
    assert [row.trainId for row in theirs] == list(CITYSCAPES_TRAIN_IDS)
    assert [row.color for row in theirs] == [tuple(row) for row in PALETTE.tolist()]


def test_same_seed_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_cityscapes(tmp_path / name, splits={"train": 2}, seed=1, height=32, width=64)
    first = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert first
    for path in first:
        if (tmp_path / "a" / path).is_file():
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_write_refuses_what_it_would_spoil(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_cityscapes(tmp_path, splits={"train": 1})
    with pytest.raises(UserError, match="is a file"):
        write_cityscapes(tmp_path / "mine.txt", splits={"train": 1})
    for splits, message in (
        ({}, "No splits"),
        ({"train": 0}, "at least 1"),
        ({"../x": 1}, "name a split"),
    ):
        with pytest.raises(UserError, match=message):
            write_cityscapes(tmp_path / "new", splits=splits)
    assert not (tmp_path / "new").exists()


def test_depth_stays_in_range_over_many_small_scenes():
    """Walls seen edge-on once had a depth of kilometres on their rim."""
    for index in range(80):
        scene = render_scene(11, index, height=32, width=64)
        assert np.isfinite(scene.depth).all()
        assert scene.depth.max() < 250
        assert scene.depth[scene.depth > 0].min() > 0.3
