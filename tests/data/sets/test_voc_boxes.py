from __future__ import annotations

import numpy as np
import pytest

from densekd.data import VOCBoxes
from densekd.data.sets.voc_boxes import CLASSES
from densekd.errors import DataError

from ..conftest import make_image

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def build(root, stems=("000007", "000012"), objects="", head=""):
    for i, stem in enumerate(stems):
        make_image(root / f"JPEGImages/{stem}.jpg", seed=i)
        path = root / f"Annotations/{stem}.xml"
        path.parent.mkdir(exist_ok=True)
        size = "<size><width>16</width><height>12</height><depth>3</depth></size>"
        path.write_text(f"{head}<annotation>{size}{objects}</annotation>")
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "train.txt").write_text("\n".join(stems) + "\n")
    return root


def entry(*box, name="car", difficult=0) -> str:
    return OBJECT.format(*box, name=name, difficult=difficult)


def test_read(tmp_path):
    build(tmp_path, objects=entry(1, 1, 16, 12) + entry(3, 4, 3, 8, name="person", difficult=1))
    reader = VOCBoxes(tmp_path)
    assert (len(reader), reader.num_classes, len(set(reader.palette))) == (2, 20, 20)
    assert reader.category_ids == list(range(1, 21))
    sample = reader.read(1)
    # Pixel numbers from 1, the last one inside: the whole image, and a column one pixel wide.
    assert sample.target.boxes.tolist() == [[0, 0, 16, 12], [2, 3, 3, 8]]
    assert [CLASSES[k] for k in sample.target.labels] == ["car", "person"]
    assert sample.target.ignored.tolist() == [False, True]
    assert sample.target.areas.tolist() == [192, 5]
    assert sample.target.image_id == 12
    assert sample.image.shape == (12, 16, 3)
    assert (sample.name, reader.name(1)) == ("000012.jpg", "000012.jpg")


def test_image_numbers(tmp_path):
    build(tmp_path, stems=("2008_000012", "2009_000012"))
    assert [VOCBoxes(tmp_path).read(i).target.image_id for i in (0, 1)] == [2008000012, 2009000012]
    build(tmp_path, stems=("a1", "b1"))
    assert [VOCBoxes(tmp_path).read(i).target.image_id for i in (0, 1)] == [1, 2]
    assert len(VOCBoxes(tmp_path).read(0).target) == 0


def test_where_the_set_may_be(tmp_path):
    build(tmp_path / "VOCdevkit/VOC2007")
    assert len(VOCBoxes(tmp_path)) == len(VOCBoxes(tmp_path / "VOCdevkit")) == 2
    build(tmp_path / "VOCdevkit/VOC2012")
    with pytest.raises(DataError, match=r"VOC2007, .*VOC2012; set `root` to one"):
        VOCBoxes(tmp_path)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (entry(1, 1, 5, 5, name="carr"), r"no class 'carr' in object 1 of .*Did you mean 'car'"),
        (entry(1, 1, 5, 5) + entry(9, 9, 5, 5), r"outside the image of 16x12: object 2 \(8, 8, 5"),
        (entry(30, 1, 40, 5), "object 1"),
        (entry(1, 1, 40, 5), "object 1"),
        (entry(1, "one", 4, 5), r"bndbox/ymin = 'one'"),
        ("<object>", "damaged XML"),
    ],
)
def test_bad_annotations(tmp_path, objects, message):
    build(tmp_path, objects=objects)
    with pytest.raises(DataError, match=message):
        VOCBoxes(tmp_path).read(0)


def test_entities_are_refused(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    build(tmp_path, head=bomb, objects="<object>&b;</object>")
    with pytest.raises(DataError, match="declares a document type"):
        VOCBoxes(tmp_path).read(0)
    # Neither does another encoding carry it past the check.
    path = tmp_path / "Annotations/000007.xml"
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(DataError, match="damaged XML"):
        VOCBoxes(tmp_path).read(0)


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match="JPEGImages"):
        VOCBoxes(tmp_path)
    build(tmp_path)
    with pytest.raises(DataError, match="Did you mean 'train'"):
        VOCBoxes(tmp_path, "trains")
    make_image(tmp_path / "JPEGImages/000012.jpg", size=(13, 16))
    with pytest.raises(DataError, match=r"000012\.jpg is 16x13 .* says 16x12"):
        VOCBoxes(tmp_path).read(1)
    (tmp_path / "Annotations/000007.xml").unlink()
    with pytest.raises(DataError, match=r"1 files of VOC do not exist: .*000007\.xml"):
        VOCBoxes(tmp_path)
    with pytest.raises(DataError, match=r"000007\.xml does not exist"):
        VOCBoxes(tmp_path, verify_files=False).read(0)


def test_the_real_subset(shared):
    root = shared / "data/voc2007_subset"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    train, val = VOCBoxes(root), VOCBoxes(root, "val")
    assert (len(train), len(val)) == (260, 80)
    targets = [val.read(i).target for i in range(0, 80, 8)]
    assert all((t.boxes[:, 2:] > t.boxes[:, :2]).all() for t in targets)
    assert sum(map(len, targets)) > 10
    first = train.read(0)
    assert first.image.shape == (406, 500, 3)
    np.testing.assert_array_equal(first.target.boxes[0], [12, 310, 84, 362])
