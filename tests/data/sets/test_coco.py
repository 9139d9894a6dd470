from __future__ import annotations

import json

import numpy as np
import pytest

from densekd.data import Coco
from densekd.errors import DataError, UserError

from ..conftest import SIZE, make_image

HEIGHT, WIDTH = SIZE
CATEGORIES = [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}, {"id": 3, "name": "car"}]


def note(number, image, category=1, box=(2, 3, 4, 5), **more) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(box), **more}


def build(root, annotations, *, ids=(9, 4, 7), categories=CATEGORIES, folder="val2017"):
    images = [{"id": i, "file_name": f"{i:03d}.jpg", "height": HEIGHT, "width": WIDTH} for i in ids]
    for i in ids:
        make_image(root / folder / f"{i:03d}.jpg", seed=i)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return root


def test_read(tmp_path):
    build(
        tmp_path,
        [
            note(1, 7, 44, (1.5, 2, 6, 4), area=11.5),
            note(2, 9, 3, (0, 0, 16, 12), iscrowd=1, area=80),
            note(3, 7, 1, (10, 5, 6.5, 7), area=20),
        ],
    )
    reader = Coco(tmp_path, "val2017")
    assert (reader.task, reader.num_classes) == ("detection", 3)
    assert reader.classes == ["person", "car", "bottle"]
    assert reader.category_ids == [1, 3, 44]
    assert len(set(reader.palette)) == 3
    assert [reader.name(i) for i in range(3)] == ["004.jpg", "007.jpg", "009.jpg"]
    empty, two, crowd = (reader.read(i).target for i in range(3))
    assert (len(empty), empty.image_id) == (0, 4)
    np.testing.assert_array_equal(two.boxes, [[1.5, 2, 7.5, 6], [10, 5, 16, 12]])  # 16.5 is clipped
    assert two.labels.tolist() == [2, 0]
    assert two.areas.tolist() == [11.5, 20]
    assert (two.image_id, two.ignored.tolist(), crowd.ignored.tolist()) == (7, [False] * 2, [True])
    assert reader.read(1).image.shape == (HEIGHT, WIDTH, 3)
    assert reader.paths(0)[0] == tmp_path / "val2017/004.jpg"


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images", "."])
def test_where_images_may_be(tmp_path, folder):
    build(tmp_path, [note(1, 7)], folder=folder)
    (tmp_path / "images").mkdir(exist_ok=True)
    assert Coco(tmp_path, "val2017").paths(0)[0] == tmp_path / folder / "004.jpg"


def test_options(tmp_path):
    build(tmp_path, [note(1, 7, 44), note(2, 9, 3, iscrowd=1), note(3, 4, 3)], folder="pics")
    (tmp_path / "annotations/instances_val2017.json").rename(tmp_path / "mine.json")
    reader = Coco(tmp_path, annotations="mine.json", images="pics", classes=["bottle", "person"])
    assert (reader.classes, reader.category_ids) == (["bottle", "person"], [44, 1])
    assert [reader.read(i).target.labels.tolist() for i in range(3)] == [[], [0], []]
    # Areas are the boxes' where the file has none.
    assert reader.read(1).target.areas.tolist() == [20]
    full = Coco(tmp_path, annotations="mine.json", images="pics", keep_empty=False)
    assert [full.read(i).target.image_id for i in range(len(full))] == [4, 7]
    assert [full.name(i) for i in range(2)] == ["004.jpg", "007.jpg"]


@pytest.mark.parametrize(
    "box", [(20, 3, 4, 5), (2, 3, 0, 5), (2, 3, -1, 5), (2, 3, 25, 5), (-9, 0, 12, 5)]
)
def test_bad_boxes(tmp_path, box):
    build(tmp_path, [note(1, 7), note(5, 7, box=box)])
    with pytest.raises(DataError, match=r"annotation 5 has the box .* in 007\.jpg of 16x12"):
        Coco(tmp_path, "val2017")
    late = Coco(tmp_path, "val2017", verify_files=False)
    assert len(late.read(0).target) == 0
    with pytest.raises(DataError, match="annotation 5"):
        late.read(1)
    mended = Coco(tmp_path, "val2017", repair=True).read(1).target
    boxes = mended.boxes.tolist()
    assert boxes[0] == [2, 3, 6, 8]
    assert boxes[1:] == ([[2, 3, 16, 8]] if box[2] == 25 else [[0, 0, 3, 5]] if box[0] < 0 else [])


def test_a_box_that_float32_leaves_no_width_is_bad(tmp_path):
    """Boxes are kept in float32, where 15 + 1e-7 is 15."""
    build(tmp_path, [note(1, 7), note(5, 7, box=(15, 3, 1e-7, 5))])
    with pytest.raises(DataError, match="annotation 5 has the box"):
        Coco(tmp_path, "val2017")
    assert Coco(tmp_path, "val2017", repair=True).read(1).target.boxes.tolist() == [[2, 3, 6, 8]]


@pytest.mark.parametrize(
    ("annotations", "change", "message"),
    [
        ([note(8, 55)], {}, "annotation 8 of image 55"),
        ([note(8, 7, 2)], {}, "annotation 8 of category 2"),
        ([], {"ids": (4, 4)}, "1 image ids occur more than once: 4"),
        ([], {"categories": [*CATEGORIES, {"id": 3, "name": "x"}]}, "share the id 3"),
        ([], {"categories": [*CATEGORIES, {"id": 5, "name": "car"}]}, "share the name car"),
        ([], {"categories": []}, "has no categories"),
        ([note(8, 7, box=(1, 2, 3))], {}, "'annotations' lacks a usable 'bbox'"),
        ([{"id": 3, "bbox": [1, 2, 3, 4]}], {}, "lacks a usable 'image_id'"),
        ([note(8, 7, box=(1, 2, float("nan"), 3))], {}, "annotation 8 has the box"),
    ],
)
def test_bad_annotations(tmp_path, annotations, change, message):
    build(tmp_path, annotations, **change)
    with pytest.raises(DataError, match=message):
        Coco(tmp_path, "val2017")


def test_bad_files(tmp_path):
    build(tmp_path, [note(1, 7)])
    with pytest.raises(DataError, match="Did you mean 'val2017'"):
        Coco(tmp_path, "val2071")
    with pytest.raises(DataError, match="Did you mean 'bottle'"):
        Coco(tmp_path, "val2017", classes=["botle"])
    with pytest.raises(UserError, match="`channels` is 2"):
        Coco(tmp_path, "val2017", channels=2)
    make_image(tmp_path / "val2017/009.jpg", size=(HEIGHT, WIDTH + 1))
    with pytest.raises(DataError, match=r"009\.jpg is 17x12 .* says 16x12"):
        Coco(tmp_path, "val2017").read(2)
    (tmp_path / "val2017/007.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images .* are not in .*007\.jpg"):
        Coco(tmp_path, "val2017")
    with pytest.raises(DataError, match=r"007\.jpg does not exist"):
        Coco(tmp_path, "val2017", verify_files=False).read(1)
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="cannot be read as JSON"):
        Coco(tmp_path, "val2017")
    path.write_text('{"images": [], "categories": []}')
    with pytest.raises(DataError, match="has no list of annotations"):
        Coco(tmp_path, "val2017")
    with pytest.raises(DataError, match=r"other\.json does not exist"):
        Coco(tmp_path, "val2017", annotations="other.json")


def test_agrees_with_pycocotools(tmp_path):
    """The same objects of random files, image by image."""
    coco = pytest.importorskip("pycocotools.coco")
    rng = np.random.default_rng(0)
    notes = []
    for number in range(40):
        x, y = rng.uniform(0, 10, 2)
        size = rng.uniform(1, 6), rng.uniform(1, 2)
        notes.append(
            note(number, int(rng.choice([9, 4, 7])), int(rng.choice([44, 1, 3])), (x, y, *size),
                 area=float(rng.uniform(1, 9)), iscrowd=int(rng.random() < 0.2))
        )  # fmt: skip
    build(tmp_path, notes)
    oracle = coco.COCO(tmp_path / "annotations/instances_val2017.json")
    reader = Coco(tmp_path, "val2017")
    for i in range(3):
        target = reader.read(i).target
        true = oracle.loadAnns(oracle.getAnnIds(imgIds=[target.image_id]))
        assert len(true) == len(target) > 3
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in true)]
        np.testing.assert_allclose(target.boxes, corners, rtol=1e-6)
        assert [reader.category_ids[k] for k in target.labels] == [r["category_id"] for r in true]
        assert target.ignored.tolist() == [bool(r["iscrowd"]) for r in true]
        np.testing.assert_allclose(target.areas, [r["area"] for r in true], rtol=1e-6)
