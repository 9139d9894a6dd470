from __future__ import annotations

import numpy as np
import pytest

from densekd.data import Cityscapes, to_label_ids
from densekd.data.sets.cityscapes import LABELS
from densekd.errors import DataError

from ..conftest import SIZE, make_image, make_labels


@pytest.fixture
def root(tmp_path):
    for split, city, n in (("train", "aachen", 2), ("train", "bonn", 1), ("val", "ulm", 1)):
        for i in range(n):
            stem = f"{city}_{i:06d}_000019"
            make_image(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", i)
            labels = tmp_path / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            make_labels(labels, [*range(34), 255])
    make_image(tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    return tmp_path


def test_table_is_the_official_one():
    scripts = pytest.importorskip("cityscapesscripts.helpers.labels")
    official = {label.trainId: label for label in scripts.labels if 0 <= label.trainId < 19}
    for train_id, row in enumerate(LABELS):
        label = official[train_id]
        assert row == (label.name, label.id, label.color)


def test_label_ids_are_mapped(root):
    reader = Cityscapes(root)
    assert len(reader) == 3
    assert reader.name(0) == "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    raw = np.resize([*range(34), 255], SIZE)
    expected = np.full(SIZE, 255)
    for train_id, row in enumerate(LABELS):
        expected[raw == row.label_id] = train_id
    np.testing.assert_array_equal(reader.read(0).target, expected)
    back = to_label_ids(reader.read(0).target)
    np.testing.assert_array_equal(back, np.where(expected == 255, 0, raw))


def test_subset_of_classes(root):
    names = ["sky", "road", "car"]
    reader = Cityscapes(root, classes=names)
    assert (reader.classes, reader.palette[0]) == (names, (70, 130, 180))
    target = reader.read(0).target
    raw = np.resize([*range(34), 255], SIZE)
    for index, label_id in enumerate((23, 7, 26)):
        np.testing.assert_array_equal(target == index, raw == label_id)
    assert set(np.unique(target)) == {0, 1, 2, 255}
    assert set(np.unique(to_label_ids(target, names))) == {0, 7, 23, 26}
    with pytest.raises(DataError, match="Did you mean 'sidewalk'"):
        Cityscapes(root, classes=["sidewalks"])


def test_train_ids(root):
    with pytest.raises(DataError, match=r"3 of 3 images have no label: .*_gtFine_labelTrainIds"):
        Cityscapes(root, labels="trainids")
    for file in (root / "gtFine/train").glob("*/*_labelIds.png"):
        make_labels(file.with_name(file.name.replace("labelIds", "labelTrainIds")), [0, 18, 255])
    target = Cityscapes(root, labels="trainIds").read(0).target
    np.testing.assert_array_equal(target, np.resize([0, 18, 255], SIZE))
    make_labels(next((root / "gtFine/train").glob("*/*_labelTrainIds.png")), [0, 33])
    with pytest.raises(DataError, match="outside the classes: 33"):
        [Cityscapes(root, labels="trainids").read(i) for i in range(3)]


def test_list_file(root):
    images = sorted((root / "leftImg8bit").glob("train/*/*.png"))
    labels = sorted((root / "gtFine").glob("train/*/*.png"))
    pairs = zip(images[1:], labels[1:], strict=True)
    lines = [f"{a.relative_to(root)}\t{b.relative_to(root)}" for a, b in pairs]
    (root / "some.lst").write_text("\n".join(lines))
    reader = Cityscapes(root, list_file="some.lst")
    assert [reader.paths(i)[0] for i in range(len(reader))] == images[1:]
    (root / "some.lst").write_text(f"{images[0].relative_to(root)}\n")
    with pytest.raises(DataError, match="have no label"):
        Cityscapes(root, list_file=root / "some.lst")
    with pytest.raises(DataError, match=r"none\.lst does not exist"):
        Cityscapes(root, list_file="none.lst")


def test_test_split_needs_no_labels(root):
    assert Cityscapes(root, "test").read(0).target is None


def test_wrong_places(root, tmp_path_factory):
    with pytest.raises(DataError, match=r"no Cityscapes split 'vall'.*Did you mean 'val'"):
        Cityscapes(root, "vall")
    with pytest.raises(DataError, match=r"leftImg8bit does not exist"):
        Cityscapes(tmp_path_factory.mktemp("empty"))
    with pytest.raises(DataError, match="kind of Cityscapes labels"):
        Cityscapes(root, labels="colors")
    next((root / "gtFine/train").glob("bonn/*")).unlink()
    with pytest.raises(DataError, match=r"1 of 3 images have no label: .*bonn"):
        Cityscapes(root)
    assert Cityscapes(root, allow_unlabelled=True).read(2).target is None
    for file in (root / "leftImg8bit/val").glob("*/*"):
        file.unlink()
    with pytest.raises(DataError, match="holds no"):
        Cityscapes(root, "val")
