from __future__ import annotations

import json

import numpy as np
import pytest

from densekd.data import CamVid, Folder, check_all, sample_check
from densekd.errors import DataError

from .conftest import make_image, make_labels, truncate


@pytest.mark.parametrize("workers", [0, 2])
def test_check_all_counts(camvid, workers):
    root = camvid(5)
    truncate(root / "train/1.png")
    (root / "trainannot/2.png").unlink()
    make_image(root / "train/3.png", size=(20, 30))
    make_labels(root / "trainannot/4.png", [0, 1, 11])
    report = check_all(CamVid(root, verify_files=False), workers=workers)
    assert (report.samples, report.read, report.labelled, report.unlabelled) == (5, 5, 2, 0)
    assert [name for name, _ in report.bad] == ["train/1.png", "train/2.png", "train/3.png"]
    reasons = [reason for _, reason in report.bad]
    assert "truncated" in reasons[0]
    assert "2.png does not exist" in reasons[1]
    assert "30x20" in reasons[2]
    assert report.sizes == {"16x12": 2}
    assert report.pixels[:2] == [16 + 64, 16 + 64]
    assert report.images == [2, 2, *[1] * 9]
    assert (report.label_range, report.ignored) == ((0, 10), 16 + 64)
    assert report.image_range[0] < 5
    assert report.image_range[1] > 250
    assert report.absent == []
    as_json = json.loads(json.dumps(report.to_dict()))
    assert as_json["ignored_fraction"] == pytest.approx(80 / 384)
    text = report.to_text()
    assert "train/3.png: " in text
    assert "bicyclist" in text


def test_unlabelled_and_absent(camvid):
    root = camvid(2)
    make_labels(root / "trainannot/0.png", [2])
    (root / "trainannot/1.png").unlink()
    report = check_all(CamVid(root, allow_unlabelled=True))
    assert (report.labelled, report.unlabelled, len(report.absent)) == (1, 1, 10)
    assert "never occur: sky" in report.to_text()


def test_sample_check(camvid):
    root = camvid(9)
    reader = CamVid(root)
    assert sample_check(reader) == []
    for i in range(3):
        make_labels(root / f"trainannot/{i}.png", [77])
    with pytest.raises(DataError, match=r"3 of 9 samples tried are bad: .*outside the classes: 77"):
        sample_check(reader)
    # A spread sample of a third meets at least one of any three neighbours.
    with pytest.raises(DataError):
        sample_check(reader, count=9)
    for i in range(9):
        make_labels(root / f"trainannot/{i}.png", [11])
    with pytest.raises(DataError, match="all pixels of 9 samples tried are ignored"):
        sample_check(reader)


def test_masks_of_0_and_255_are_remarked_on(tmp_path):
    for i in range(3):
        make_image(tmp_path / f"images/{i}.png")
        make_labels(tmp_path / f"masks/{i}.png", [0, 255])
    (remark,) = sample_check(Folder(tmp_path, "all", classes=["background", "lesion"]))
    assert "only the class 'background' occurs" in remark
    assert "50% of the pixels are ignored" in remark


def test_unlabelled_sets_pass(camvid):
    root = camvid(2)
    for i in range(2):
        (root / f"trainannot/{i}.png").unlink()
    assert sample_check(CamVid(root, allow_unlabelled=True)) == []


def test_samples_are_spread(camvid):
    root = camvid(100, size=(2, 2))
    reader = CamVid(root)
    read = []
    plain = reader.read
    reader.read = lambda index: (read.append(index), plain(index))[1]
    sample_check(reader, count=10)
    assert len(read) == 10
    assert np.array_equal(np.array(read) // 10, np.arange(10))
