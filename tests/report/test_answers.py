"""One image's answer as numbers in files: units of depth, numbers of COCO's images, index types."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from densekd.report.answers import as_rgb, coco_boxes, index, join_boxes, metres, overlay, save_png
from densekd.tasks import Depth, Detection, Segmentation


@pytest.mark.parametrize(("farthest", "unit"), [(10, 1000), (65, 1000), (80, 256), (500, 16)])
def test_depth_is_as_fine_as_its_range_allows(farthest, unit):
    task = Depth(min_depth=0.5, max_depth=farthest)
    depth = np.array([[0.5, 7.25], [farthest, 2.0]], np.float32)
    written = metres(task, np.zeros((2, 2, 3), np.uint8), depth)
    assert written.dtype == np.uint16
    assert np.abs(written / unit - depth).max() <= 0.5 / unit


def test_depth_outside_the_range_or_unknown_is_clamped_and_never_0():
    task = Depth(min_depth=0.5, max_depth=10)
    depth = np.array([[-1.0, np.nan, np.inf, 0.0]])
    written = metres(task, np.zeros((1, 4, 3), np.uint8), depth)
    assert written.tolist() == [[500, 500, 10000, 500]]


def test_many_classes_take_16_bits(tmp_path):
    task = Segmentation([str(i) for i in range(300)], [(0, 0, 0)] * 300)
    pixels = index(task, np.zeros((1, 2, 3), np.uint8), np.array([[299, 1]], np.int16))
    save_png(tmp_path / "a" / "b.png", pixels)
    assert np.asarray(Image.open(tmp_path / "a" / "b.png")).tolist() == [[299, 1]]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]


def test_an_overlay_is_half_image_half_colours():
    task = Segmentation(["a", "b"], [(0, 0, 0), (100, 200, 50)])
    image = np.full((1, 2, 3), 100, np.uint8)
    assert overlay(task, image, np.array([[0, 1]])).tolist() == [[[50, 50, 50], [100, 150, 75]]]


def test_channels_of_pictures():
    assert as_rgb(np.full((2, 2, 1), 7, np.uint8)).shape == (2, 2, 3)
    assert as_rgb(np.zeros((2, 2, 4), np.uint8)).shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["000139.jpg", "x/7.png"], [139, 7]),
        (["a.jpg", "x/7.png"], [1, 2]),
        (["a/7.jpg", "b/7.jpg"], [1, 2]),
    ],
)
def test_images_have_the_number_in_their_name_or_their_place(names, expected):
    task = Detection(["car", "sign"], [(0, 0, 0)] * 2, category_ids=[3, 13])
    answer = {
        "boxes": np.array([[1.0, 2.0, 5.0, 10.0]]),
        "scores": np.array([0.5]),
        "labels": np.array([1]),
    }
    images = {n: {"width": 20, "height": 30, "boxes": coco_boxes(task, answer)} for n in names}
    results, listed = join_boxes(task, images)
    assert [r["image_id"] for r in results] == [i["id"] for i in listed["images"]] == expected
    assert results[0]["category_id"] == 13
    assert results[0]["bbox"] == [1.0, 2.0, 4.0, 8.0]
    assert listed["categories"] == [{"id": 3, "name": "car"}, {"id": 13, "name": "sign"}]
