from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densekd.data import IDDLite
from densekd.errors import DataError, UserError
from tests.data.conftest import make_image, make_labels

VALUES = [*range(7), 255]


@pytest.fixture
def idd_lite(tmp_path):
    """Five drives of two images each, and a test split without labels."""
    for drive in ("0", "1", "10", "2", "3"):
        for i, name in enumerate(("000100", "000200")):
            folder = Path("train") / drive
            make_image(tmp_path / "leftImg8bit" / folder / f"{name}_image.jpg", seed=i)
            make_labels(
                tmp_path / "gtFine" / folder / f"{name}_label.png", np.roll(VALUES, i).tolist()
            )
    make_image(tmp_path / "leftImg8bit" / "test" / "7" / "000100_image.jpg")
    return tmp_path


def labelled(reader):
    return [reader.name(i).split("/")[2] for i in range(len(reader)) if reader.paths(i)[1]]


def test_read(idd_lite):
    reader = IDDLite(idd_lite)
    assert (len(reader), reader.num_classes, len(reader.palette), reader.ignore_index) == (
        10,
        7,
        7,
        255,
    )
    assert reader.name(1) == "leftImg8bit/train/0/000200_image.jpg"
    target = reader.read(1).target
    np.testing.assert_array_equal(target, np.resize(np.roll(VALUES, 1), target.shape))
    assert len(IDDLite(idd_lite.parent / idd_lite.name)) == 10


def test_a_folder_around_it(idd_lite, tmp_path_factory):
    around = tmp_path_factory.mktemp("around")
    (around / "idd_lite").symlink_to(idd_lite)
    assert IDDLite(around).name(0) == "leftImg8bit/train/0/000100_image.jpg"


def test_labels_of_every_second_drive(idd_lite):
    few = IDDLite(idd_lite, labelled_every=2)
    assert len(few) == 6
    assert labelled(few) == ["0", "0", "10", "10", "3", "3"]
    mixed = IDDLite(idd_lite, labelled_every=2, allow_unlabelled=True)
    assert len(mixed) == 10
    assert labelled(mixed) == ["0", "0", "10", "10", "3", "3"]
    assert mixed.read(2).target is None
    assert mixed.read(0).target is not None
    assert labelled(IDDLite(idd_lite, labelled_every=100)) == ["0", "0"]
    with pytest.raises(UserError, match="`labelled_every` is 0; expected 1"):
        IDDLite(idd_lite, labelled_every=0)


def test_test_has_no_labels(idd_lite):
    reader = IDDLite(idd_lite, "test")
    assert len(reader) == 1
    assert reader.read(0).target is None


def test_wrong_places(idd_lite):
    with pytest.raises(DataError, match="Did you mean 'train'"):
        IDDLite(idd_lite, "trian")
    with pytest.raises(DataError, match="the IDD Lite folder with leftImg8bit/ and gtFine/"):
        IDDLite(idd_lite / "gtFine")
    (idd_lite / "leftImg8bit" / "val" / "9").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no \*/\*_image.jpg"):
        IDDLite(idd_lite, "val")
    (idd_lite / "gtFine" / "train" / "10" / "000100_label.png").unlink()
    with pytest.raises(DataError, match=r"1 of 10 images have no label: .*10/000100_image\.jpg"):
        IDDLite(idd_lite)
    assert IDDLite(idd_lite, allow_unlabelled=True).read(4).target is None


def test_real_idd_lite(shared):
    root = shared / "data" / "idd_lite"
    if not root.is_dir():
        pytest.skip(f"the real IDD Lite is not at {root}")
    sizes = {split: len(IDDLite(root, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 1403, "val": 99, "test": 404}
    assert len(IDDLite(root, labelled_every=16)) == 88
    mixed = IDDLite(root, labelled_every=16, allow_unlabelled=True)
    assert len(mixed) == 1403
    assert len(labelled(mixed)) == 88
    sample = IDDLite(root, "val").read(0)
    assert sample.image.shape == (227, 320, 3)
    assert set(np.unique(sample.target)) <= {*range(7), 255}
