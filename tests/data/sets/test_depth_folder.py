from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekd.data import DepthFiles, DepthFolder
from densekd.errors import DataError, UserError

from ..conftest import SIZE, make_image, truncate

LAYOUTS = ("train/images", "train/depth"), ("images/train", "depth/train"), ("images", "depth")
STEPS = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) * 300


def make_depth(path: Path, steps: np.ndarray = STEPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(steps).save(path)


def build(root, images="train/images", depth="train/depth", names=("a_0", "a_1", "b_0")):
    for i, name in enumerate(names):
        make_image(root / images / f"{name}.jpg", i)
        make_depth(root / depth / f"{name}.png")
    return root


@pytest.mark.parametrize(("images", "depth"), LAYOUTS)
def test_layouts(tmp_path, images, depth):
    build(tmp_path, images, depth)
    (tmp_path / "train.txt").write_text("a_0\nb_0.jpg\n")
    reader = DepthFolder(tmp_path, unit="mm")
    assert (reader.task, reader.classes, reader.palette) == ("depth", [], [])
    assert len(reader) == (2 if images == "images" else 3)
    sample = reader.read(0)
    np.testing.assert_allclose(sample.target.depth, STEPS / 1000, rtol=1e-6)
    assert sample.target.depth.dtype == np.float32
    assert sample.target.intrinsics is None
    assert sample.name == reader.name(0) == f"{images}/a_0.jpg"


@pytest.mark.parametrize(
    ("unit", "metres"),
    [
        ("mm", 0.001),
        ("m/1000", 0.001),
        ("m/256", 1 / 256),
        ("m", 1),
        ("m/5000", 0.0002),
        (0.0002, 0.0002),
        ("cm", 0.01),
    ],
)
def test_units(tmp_path, unit, metres):
    depth = DepthFolder(build(tmp_path), unit=unit).read(0).target.depth
    np.testing.assert_allclose(depth, STEPS * metres, rtol=1e-6)


def test_a_unit_is_required(tmp_path):
    build(tmp_path)
    with pytest.raises(TypeError, match="unit"):
        DepthFolder(tmp_path)
    for unit in ("inch", 0, -1, None, float("nan"), float("inf")):
        with pytest.raises(UserError, match="`unit` is"):
            DepthFolder(tmp_path, unit=unit)


def test_intrinsics(tmp_path):
    build(tmp_path, names=("a_0", "a_1", "ab_0"))

    def cameras(**options):
        reader = DepthFolder(tmp_path, unit="mm", **options)
        return [reader.read(i).target.intrinsics for i in range(3)]

    one, two = (10.0, 11.0, 7.5, 5.5), (20.0, 20.0, 8.0, 6.0)
    assert cameras(intrinsics=list(one)) == [one] * 3
    assert cameras(intrinsics={"a": one, "ab": two}) == [one, one, two]
    # Of images twice as large: the centre of the middle pixels stays the middle.
    assert cameras(intrinsics=(20, 22, 15.5, 11.5), intrinsics_size=(24, 32)) == [one] * 3
    for wrong in ((1, 2, 3), ["a", "b", "c", "d"], (0, 1, 2, 3), {"a": (1, 2)}):
        with pytest.raises(UserError, match="intrinsics"):
            cameras(intrinsics=wrong)
    with pytest.raises(UserError, match=r"nothing for ab_0\.jpg; its names begin with 'a_'"):
        cameras(intrinsics={"a_": one})
    with pytest.raises(UserError, match="intrinsics_size"):
        cameras(intrinsics=one, intrinsics_size=(24,))


def test_camera_files_and_endings(tmp_path):
    for i in range(2):
        make_image(tmp_path / f"rgb/val/town/{i}_left.png", i)
        make_depth(tmp_path / f"z/val/town/{i}_depth.png")
        path = tmp_path / f"camera/val/town/{i}_camera.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"fx": 9 + i, "fy": 9.5, "cx": 7.5, "cy": 5.5}))
    options = {
        "unit": "m/256", "images": "rgb", "depth": "z", "image_ending": "_left.png",
        "depth_ending": "_depth.png", "intrinsics": "camera",
    }  # fmt: skip
    reader = DepthFolder(tmp_path, "val", **options)
    assert [reader.read(i).target.intrinsics[0] for i in range(2)] == [9, 10]
    assert reader.name(1) == "rgb/val/town/1_left.png"
    path.write_text('{"fx": 1}')
    with pytest.raises(DataError, match=r"1_camera\.json gives no camera"):
        DepthFolder(tmp_path, "val", **options).read(1)
    path.write_text('{"fx": -1, "fy": 1, "cx": 0, "cy": 0}')
    with pytest.raises(DataError, match=r"1_camera\.json.*focal lengths"):
        DepthFolder(tmp_path, "val", **options).read(1)
    path.unlink()
    with pytest.raises(DataError, match="1 camera files do not exist"):
        DepthFolder(tmp_path, "val", **options)


def test_bad_depth(tmp_path):
    build(tmp_path)
    path = tmp_path / "train/depth/a_1.png"
    reader = DepthFolder(tmp_path, unit="mm")
    for steps, message in [
        (STEPS.astype(np.uint8), r"has 8 bits \(L\); expected depth of 16 bits"),
        (np.zeros((*SIZE, 3), np.uint8), "has 3 channels"),
        (STEPS[:5], r"is 16x5 .* its image .* is 16x12"),
    ]:
        make_depth(path, steps)
        with pytest.raises(DataError, match=rf"a_1\.png.* {message}"):
            reader.read(1)
    Image.fromarray(-1 * STEPS.astype(np.int32)).save(path, format="TIFF")
    with pytest.raises(DataError, match=r"a_1\.png holds negative numbers"):
        reader.read(1)
    make_depth(path, STEPS * 0)
    assert not reader.read(1).target.depth.any()  # known nowhere, and no fault of the file
    make_depth(path, np.random.default_rng(0).integers(1, 60000, (60, 60)).astype(np.uint16))
    truncate(path)
    with pytest.raises(DataError, match="truncated"):
        reader.read(1)
    path.unlink()
    with pytest.raises(DataError, match=r"1 of 3 images have no label: .*depth/a_1\.png"):
        DepthFolder(tmp_path, unit="mm")
    assert DepthFolder(tmp_path, unit="mm", allow_unlabelled=True).read(1).target is None


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match=r"neither train/images/ nor images/"):
        DepthFolder(tmp_path, unit="mm")
    build(tmp_path)
    with pytest.raises(DataError, match="Did you mean 'train'"):
        DepthFolder(tmp_path, "tarin", unit="mm")
    with pytest.raises(DataError, match=r"holds no images \(_x\.png\)"):
        DepthFolder(tmp_path, unit="mm", image_ending="_x.png")
    make_image(tmp_path / "train/images/a_0.png")
    with pytest.raises(DataError, match="share their stem"):
        DepthFolder(tmp_path, unit="mm")


def test_the_real_rooms(shared):
    root = shared / "data/kinect_rooms"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    cameras = {"kitchen_": (585, 585, 320, 240), "office_": (517.3, 516.5, 318.6, 255.3)}
    train, val = (
        DepthFolder(root, split, unit="mm", intrinsics=cameras, intrinsics_size=(480, 640))
        for split in ("train", "val")
    )
    assert (len(train), len(val)) == (142, 24)
    for i in (0, 12, 23):
        target = val.read(i).target
        known = target.depth[target.depth > 0]
        assert 0.5 < known.min() < np.median(known) < 6
        assert known.size > 0.5 * target.depth.size
        assert target.intrinsics[0] in (585, 517.3)


@pytest.mark.parametrize("allow_unlabelled", [False, True])
def test_intrinsics_stay_with_their_images_where_few_have_labels(tmp_path, allow_unlabelled):
    build(tmp_path)
    cameras = {"a_0": (1, 1, 0, 0), "a_1": (2, 2, 0, 0), "b": (3, 3, 0, 0)}
    reader = DepthFolder(
        tmp_path, unit="mm", intrinsics=cameras, labelled=2, allow_unlabelled=allow_unlabelled
    )
    assert len(reader) == (3 if allow_unlabelled else 2)
    assert [reader.read(i).target.intrinsics[0] for i in range(2)] == [1, 2]
    assert not allow_unlabelled or reader.read(2).target is None


def test_intrinsics_follow_what_is_kept(tmp_path):
    build(tmp_path)
    pairs = [
        (tmp_path / f"train/images/{name}.jpg", tmp_path / f"train/depth/{name}.png")
        for name in ("b_0", "a_0")
    ]
    cameras = [(1.0, 1.0, 0.0, 0.0), (2.0, 2.0, 0.0, 0.0)]
    reader = DepthFiles(pairs, unit="mm", intrinsics=cameras, root=tmp_path, labelled=1)
    assert reader.name(0) == "train/images/a_0.jpg"
    assert reader.read(0).target.intrinsics[0] == 2
