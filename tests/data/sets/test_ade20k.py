from __future__ import annotations

import numpy as np
import pytest

from densekd.data import ADE20K
from densekd.errors import DataError

from ..conftest import SIZE, make_image, make_labels


@pytest.fixture
def root(tmp_path):
    inner = tmp_path / "ADEChallengeData2016"
    for folder in ("training", "validation"):
        make_image(inner / "images" / folder / "a.jpg")
        make_labels(inner / "annotations" / folder / "a.png", list(range(151)))
    return tmp_path


def test_read(root):
    reader = ADE20K(root, "val")
    assert (reader.num_classes, len(set(reader.palette))) == (150, 150)
    assert (reader.classes[0], reader.classes[7], reader.classes[149]) == ("wall", "bed", "flag")
    raw = np.resize(np.arange(151), SIZE)
    np.testing.assert_array_equal(reader.read(0).target, np.where(raw == 0, 255, raw - 1))
    assert len(ADE20K(root / "ADEChallengeData2016", "training")) == 1


def test_bad_input(root):
    with pytest.raises(DataError, match="Did you mean 'train'"):
        ADE20K(root, "trains")
    labels = root / "ADEChallengeData2016/annotations/training/a.png"
    make_labels(labels, [0, 151])
    with pytest.raises(DataError, match=r"outside the classes: 151 .*0-150"):
        ADE20K(root).read(0)
    labels.unlink()
    with pytest.raises(DataError, match="1 of 1 images have no label"):
        ADE20K(root)
    (root / "ADEChallengeData2016/images/training/a.jpg").unlink()
    with pytest.raises(DataError, match=r"no \.jpg files"):
        ADE20K(root)
    with pytest.raises(DataError, match="does not exist"):
        ADE20K(root / "nowhere")
