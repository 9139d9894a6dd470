from __future__ import annotations

import numpy as np
import pytest

from densekd.data import VOC
from densekd.errors import DataError

from ..conftest import SIZE, make_image, make_labels


@pytest.fixture
def root(tmp_path):
    inner = tmp_path / "VOCdevkit/VOC2012"
    lists = inner / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for i in range(3):
        make_image(inner / f"JPEGImages/2007_{i}.jpg", i)
        make_labels(inner / f"SegmentationClassAug/2007_{i}.png", [0, 15])
    make_labels(inner / "SegmentationClass/2007_0.png", [0, 20, 255], palette=True)
    (lists / "train.txt").write_text("2007_0\n")
    (lists / "trainaug.txt").write_text("2007_0\n2007_1\n2007_2\n")
    return tmp_path


@pytest.mark.parametrize("inner", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_read(root, inner):
    reader = VOC(root / inner)
    assert (len(reader), reader.num_classes) == (1, 21)
    assert reader.palette[15] == (192, 128, 128)  # person, as in the development kit
    np.testing.assert_array_equal(reader.read(0).target, np.resize([0, 20, 255], SIZE))


def test_trainaug(root):
    reader = VOC(root, "trainaug")
    assert len(reader) == 3
    np.testing.assert_array_equal(reader.read(0).target, np.resize([0, 15], SIZE))
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "trainaug.txt").write_text("/JPEGImages/2007_1.jpg /SegmentationClassAug/2007_1.png\n")
    assert VOC(root, "trainaug").name(0) == "JPEGImages/2007_1.jpg"


def test_bad_input(root):
    with pytest.raises(DataError, match=r"no VOC split 'trainaugg'.*Did you mean 'trainaug'"):
        VOC(root, "trainaugg")
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "train.txt").write_text("2007_0\n2007_1\n")
    with pytest.raises(DataError, match="1 of 2 images have no label"):
        VOC(root)
    (lists / "train.txt").write_text("2007_9\n")
    with pytest.raises(DataError, match=r"1 of 1 images do not exist: .*2007_9\.jpg"):
        VOC(root)
    with pytest.raises(DataError, match=r"JPEGImages does not exist"):
        VOC(lists)
