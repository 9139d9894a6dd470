from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densekd.data import Kitti
from densekd.errors import DataError

from ..conftest import SIZE, make_image

DATE, DRIVE = "2011_09_26", "2011_09_26_drive_0001_sync"
CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
P_rect_02: 7.2e+02 0 6.1e+02 4.5e+01 0 7.1e+02 1.7e+02 2.1e-01 0 0 1 2.7e-03
P_rect_03: 7.3e+02 0 6.2e+02 -3.3e+02 0 7.4e+02 1.8e+02 2.1e+00 0 0 1 3.2e-03
"""


def make_depth(path):
    steps = np.zeros(SIZE, np.uint16)
    steps[6:, ::3] = 2560
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(steps).save(path)


@pytest.fixture
def root(tmp_path):
    for camera in ("02", "03"):
        for number in (5, 6):
            make_image(
                tmp_path / f"raw/{DATE}/{DRIVE}/image_{camera}/data/{number:010d}.png", number
            )
            make_depth(
                tmp_path
                / f"depth/train/{DRIVE}/proj_depth/groundtruth/image_{camera}/{number:010d}.png"
            )
    (tmp_path / f"raw/{DATE}/calib_cam_to_cam.txt").write_text(CALIBRATION)
    return tmp_path


def test_official_folders(root):
    reader = Kitti(root)
    assert (len(reader), reader.task) == (4, "depth")
    sample = reader.read(0)
    assert set(np.unique(sample.target.depth)) == {0, 10}
    assert sample.target.intrinsics == (720, 710, 610, 170)
    assert reader.read(2).target.intrinsics == (730, 740, 620, 180)
    assert len(Kitti(root, cameras=(3,))) == 2
    with pytest.raises(DataError, match="Did you mean 'train'"):
        Kitti(root, "tran")


def test_lists(root):
    truth = f"{DRIVE}/proj_depth/groundtruth/image_02/0000000006.png"
    image = f"{DATE}/{DRIVE}/image_02/data/0000000006.png"
    (root / "eigen_test.txt").write_text(
        f"{image} {truth} 721.5377\n{image} None 721.5377\n/{image} /train/{truth}\n"
    )
    reader = Kitti(root, "eigen_test")
    assert len(reader) == 2
    for i in range(2):
        assert reader.read(i).target.depth.max() == 10
        assert reader.read(i).target.intrinsics[0] == 720
    bare = Kitti(root, "val", list_file="eigen_test.txt", allow_unlabelled=True)
    assert [bare.read(i).target is None for i in range(3)] == [False, True, False]
    # A recompressed set, without its calibration.
    path = root / "raw" / image
    make_image(path.with_suffix(".jpg"))
    path.unlink()
    (root / f"raw/{DATE}/calib_cam_to_cam.txt").unlink()
    assert Kitti(root, "eigen_test").read(0).target.intrinsics is None
    assert Kitti(root, "eigen_test").name(0).endswith("0000000006.jpg")
    (root / "eigen_test.txt").write_text("a b c d\n")
    with pytest.raises(DataError, match="a line of 4 words"):
        Kitti(root, "eigen_test")


def test_selection(tmp_path):
    with pytest.raises(DataError, match="val_selection_cropped"):
        Kitti(tmp_path, "val_selection")
    folder = tmp_path / "depth_selection/val_selection_cropped"
    make_image(folder / f"image/{DRIVE}_image_0000000005_image_02.png")
    make_depth(folder / f"groundtruth_depth/{DRIVE}_groundtruth_depth_0000000005_image_02.png")
    camera = folder / f"intrinsics/{DRIVE}_image_0000000005_image_02.txt"
    camera.parent.mkdir()
    camera.write_text("720.0 0 600.0 0 710.0 160.0 0 0 1\n")
    sample = Kitti(tmp_path, "val_selection").read(0)
    assert sample.target.intrinsics == (720, 710, 600, 160)
    camera.write_text("720.0 0\n")
    with pytest.raises(DataError, match="has 2 numbers"):
        Kitti(tmp_path, "val_selection")


def test_bad_files(root):
    (root / f"raw/{DATE}/calib_cam_to_cam.txt").write_text("P_rect_00: 1 2\n")
    with pytest.raises(DataError, match="has no P_rect_02"):
        Kitti(root)
    (root / f"raw/{DATE}/calib_cam_to_cam.txt").write_text(CALIBRATION)
    (root / f"raw/{DATE}/{DRIVE}/image_02/data/0000000005.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images do not exist: .*0000000005\.png"):
        Kitti(root)
