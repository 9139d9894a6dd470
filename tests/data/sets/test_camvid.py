from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from densekd.data import CamVid
from densekd.errors import DataError

SHARED = Path(os.environ.get("DENSEKD_SHARED", Path(__file__).parents[2] / ".." / "shared"))


def test_read(camvid):
    reader = CamVid(camvid(3))
    assert (len(reader), reader.num_classes, reader.ignore_index, reader.channels) == (
        3,
        11,
        255,
        3,
    )
    assert len(reader.palette) == 11
    sample = reader.read(1)
    assert sample.name == reader.name(1) == "train/1.png"
    raw = np.roll(np.resize(np.arange(12), sample.image.shape[:2]), 1)
    np.testing.assert_array_equal(sample.target, np.where(raw == 11, 255, raw))


def test_wrong_places(tmp_path, camvid):
    with pytest.raises(DataError, match=r"expected the SegNet layout of CamVid: train\.txt"):
        CamVid(tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        CamVid(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Did you mean 'train'"):
        CamVid(camvid(), "trian")


def test_lines(camvid):
    root = camvid(2)
    (root / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        CamVid(root)
    (root / "train.txt").write_text("train/0.png\n")
    with pytest.raises(DataError, match="1 of 1 images have no label"):
        CamVid(root)
    assert CamVid(root, allow_unlabelled=True).read(0).target is None
    (root / "train.txt").write_text("train/0.png trainannot/0.png 1\n")
    with pytest.raises(DataError, match="3 words"):
        CamVid(root)


@pytest.mark.skipif(
    not (SHARED / "camvid").is_dir(), reason="the real CamVid is not there; set DENSEKD_SHARED"
)
def test_real_camvid():
    train, val = (CamVid(SHARED / "camvid", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    sample = val.read(0)
    assert sample.image.shape == (360, 480, 3)
    assert set(np.unique(sample.target)) <= {*range(11), 255}
    assert not {train.name(i) for i in range(367)} & {val.name(i) for i in range(101)}
