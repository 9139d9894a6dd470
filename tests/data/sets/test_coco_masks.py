from __future__ import annotations

import json

import numpy as np
import pytest

from densekd.data import CocoMasks
from densekd.data.sets.coco_masks import object_mask
from densekd.errors import DataError, UserError

from ..conftest import SIZE
from .test_coco import build, note

pytest.importorskip("faster_coco_eval")
HEIGHT, WIDTH = SIZE


def square(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def runs_of(mask):
    """Uncompressed RLE by its definition: runs of 0 and 1 in turn, column by column."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().astype(int):
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def test_classes_and_overlap(tmp_path):
    crowd = np.zeros(SIZE, bool)
    crowd[:4, :4] = True
    build(
        tmp_path,
        [
            note(1, 7, 44, segmentation=square(2, 2, 6, 6)),
            note(2, 7, 1, segmentation=square(0, 0, 10, 10)),
            note(3, 7, 3, segmentation=runs_of(crowd), iscrowd=1),
            note(4, 9, 3, segmentation=runs_of(crowd), iscrowd=1),
        ],
    )
    reader = CocoMasks(tmp_path, "val2017")
    assert reader.classes == ["background", "person", "car", "bottle"]
    assert (reader.task, reader.num_classes, reader.ignore_index) == ("segmentation", 4, 255)
    assert reader.category_ids == [1, 3, 44]
    wanted = np.zeros(SIZE, np.uint8)
    wanted[:10, :10] = 1
    wanted[2:6, 2:6] = 3  # the smaller object is in front, though it stands first in the file
    np.testing.assert_array_equal(reader.read(1).target, wanted)
    np.testing.assert_array_equal(reader.read(2).target, np.where(crowd, 255, 0))
    assert reader.read(0).target.max() == 0

    met = CocoMasks(tmp_path, "val2017", overlap="ignore").read(1).target
    np.testing.assert_array_equal(met, np.where(wanted == 3, 255, wanted))
    bare = CocoMasks(tmp_path, "val2017", background=None, classes=["bottle"], keep_empty=False)
    assert (bare.classes, len(bare)) == (["bottle"], 1)
    np.testing.assert_array_equal(bare.read(0).target, np.where(wanted == 3, 0, 255))


def test_bad_segmentations(tmp_path):
    def fails(segmentation, words):
        build(tmp_path, [note(1, 7, 44, segmentation=segmentation)])
        with pytest.raises(DataError, match=words):
            CocoMasks(tmp_path, "val2017").read(1)

    fails(None, "annotation 1 of 007.jpg has no segmentation")
    fails([[1, 2, 3]], "annotation 1 has a polygon .* three corners")
    fails([["a"] * 6], "three corners")
    fails([[1, 2, 3, 4, 1e30, 6]], "far outside of its image of 16x12")
    fails([[1, 2, 3, 4, float("nan"), 6]], "far outside")
    fails({"size": [3, 3], "counts": [9]}, "size .3, 3. and an image of .12, 16.")
    size = [HEIGHT, WIDTH]
    for counts in ([2**62, 2**62, 2**62, 2**62, 192], [-1, 193], [5], "~~", "o" * 50, None, {}):
        fails({"size": size, "counts": counts}, "RLE that is damaged")


def test_background_is_no_category(tmp_path):
    build(tmp_path, [note(1, 7, 44, segmentation=[])])
    with pytest.raises(UserError, match="`background` is 'person', which is a category"):
        CocoMasks(tmp_path, "val2017", background="person")
    with pytest.raises(UserError, match="`overlap` is 'larger'"):
        CocoMasks(tmp_path, "val2017", overlap="larger")
    with pytest.raises(DataError, match=r"no category 'botle'.*bottle"):
        CocoMasks(tmp_path, "val2017", classes=["botle"])


def test_packed_runs_are_pycocotools():
    masks = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for size in ((5, 7), (40, 33), (300, 1)):
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random(size) < share
            packed = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
            given = {"size": list(size), "counts": packed["counts"].decode()}
            np.testing.assert_array_equal(object_mask(given, size, "x"), mask)
            np.testing.assert_array_equal(object_mask(runs_of(mask), size, "x"), mask)


def test_real_coco_is_pycocotools(shared, capsys):
    """Every annotation of the real file, and the class map that the stated rule makes of them."""
    root = shared / "data" / "coco_mini"
    path = root / "annotations/instances_train2017.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    oracle = pytest.importorskip("pycocotools.coco").COCO(str(path))
    reader = CocoMasks(root, "train2017")
    crowds = 0
    for index in range(0, len(reader), 2):
        image = int(reader._image_ids[reader._image_of[index]])
        notes = oracle.loadAnns(oracle.getAnnIds([image]))
        shape = tuple(reader._sizes[reader._image_of[index]])
        wanted = np.zeros(shape, int)
        painted = sorted(
            ((not n["iscrowd"], -int((m := oracle.annToMask(n).astype(bool)).sum()), i, m, n)
             for i, n in enumerate(notes)),
            key=lambda one: one[:3],
        )  # fmt: skip
        for _, _, _, mask, one in painted:
            crowds += one["iscrowd"]
            index_of = 1 + sorted(oracle.cats).index(one["category_id"])
            wanted[mask] = 255 if one["iscrowd"] else index_of
        np.testing.assert_array_equal(reader._class_map(reader._image_of[index], shape), wanted)
    assert crowds > 0
    assert len(reader.classes) == 1 + len(json.loads(path.read_text())["categories"])
