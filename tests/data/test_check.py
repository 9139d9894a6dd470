from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest

from densekd.data import BoxTarget, CamVid, DepthTarget, Folder, Sample, check_all, sample_check
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


class Made:
    """A set of given targets of one task on grey images of 20 x 10."""

    classes: ClassVar = ["car", "person"]
    palette: ClassVar = [(0, 0, 0), (1, 1, 1)]
    ignore_index = 255
    channels = 3

    def __init__(self, task, targets) -> None:
        self.task, self.targets = task, targets

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        return f"made {index}"

    def paths(self, index: int) -> tuple[None, None]:
        return None, None

    def read(self, index: int) -> Sample:
        if isinstance(self.targets[index], str):
            raise DataError(self.targets[index])
        return Sample(np.full((10, 20, 3), 7, np.uint8), self.targets[index], self.name(index))


def test_boxes_are_counted():
    boxes = BoxTarget([[0, 0, 4, 9], [1, 1, 5, 5], [0, 0, 9, 9]], [0, 0, 1], [0, 0, 1], [1] * 3, 1)
    one = BoxTarget([[0, 0, 8, 8]], [0], [0], [64], 2)
    seen = []
    report = check_all(
        Made("detection", [boxes, BoxTarget.empty(), "torn", None, one]), progress=seen.append
    )
    assert seen == [1] * 5
    assert (report.read, report.labelled, report.unlabelled, len(report.bad)) == (5, 3, 1, 1)
    assert (report.objects, report.images) == ([3, 0], [2, 0])
    assert (report.ignored, report.empty) == (1, 1)
    assert report.side_range == (4, 6, 8)
    content = json.loads(json.dumps(report.to_dict()))
    assert (content["task"], content["side_range"]) == ("detection", [4, 6, 8])
    assert content["absent"] == ["person"]
    text = report.to_text()
    assert "3 and 1 ignored; 1 images without" in text
    assert "4.0 smallest, 6.0 median, 8.0 largest" in text
    assert "never occur: person" in text
    assert "made 2: torn" in text


def test_images_without_objects_are_remarked_on():
    crowd = BoxTarget([[0, 0, 8, 8]], [0], [1], [64], 2)
    (remark,) = sample_check(Made("detection", [BoxTarget.empty(), crowd]))
    assert "none of 2 samples tried has an object (1 ignored ones)" in remark
    assert sample_check(Made("detection", [BoxTarget.empty(), crowd, *[one_box()] * 2])) == []
    with pytest.raises(DataError, match="1 of 2 samples tried are bad: torn"):
        sample_check(Made("detection", [BoxTarget.empty(), "torn"]))


def one_box() -> BoxTarget:
    return BoxTarget([[0, 0, 8, 8]], [0], [0], [64], 2)


def depth_map(metres: float, camera=None) -> DepthTarget:
    depth = np.zeros((10, 20), np.float32)
    depth[:5] = metres
    depth[0, 0] = metres / 2
    return DepthTarget(depth, camera)


def test_depth_is_measured():
    maps = [depth_map(2), depth_map(4, (9.0, 9.0, 9.0, 4.0)), "torn", depth_map(10), None]
    report = check_all(Made("depth", maps))
    assert (report.labelled, report.unlabelled, len(report.bad)) == (3, 1, 1)
    assert (report.median, report.depth_range, report.cameras) == (4, (1, 10), 1)
    content = json.loads(json.dumps(report.to_dict()))
    assert (content["median"], content["valid_fraction"]) == (4, 0.5)
    text = report.to_text()
    assert "1 m nearest, 4 m median, 10 m farthest\n" in text
    assert "50.00% of the pixels" in text
    assert json.dumps(check_all(Made("depth", ["torn"])).to_dict())


@pytest.mark.parametrize(
    ("metres", "plausible"), [(0.1, False), (2, True), (80, True), (2000, False)]
)
def test_a_wrong_unit_is_remarked_on(metres, plausible):
    reader = Made("depth", [depth_map(metres)] * 3)
    remarks = sample_check(reader)
    assert len(remarks) == (not plausible)
    assert all("is the unit that of the depth files" in remark for remark in remarks)
    assert ("is the unit right?" in check_all(reader).to_text()) != plausible


def test_depth_that_is_nowhere_known():
    with pytest.raises(DataError, match="no pixel of 2 samples tried has a depth"):
        sample_check(Made("depth", [DepthTarget.empty((10, 20))] * 2))


def test_maps_without_known_depth_are_named():
    """Legal, so training begins with a remark; `data check` lists them."""
    empty = DepthTarget.empty((10, 20))
    maps = [depth_map(2), empty, depth_map(2), empty]
    (remark,) = sample_check(Made("depth", maps))
    assert "0 (unknown) at every pixel of 2 of 4 samples tried: made 1, made 3." in remark
    report = check_all(Made("depth", maps))
    reason = "depth is 0 (unknown) at every pixel"
    assert report.bad == [("made 1", reason), ("made 3", reason)]
    assert (report.labelled, report.to_dict()["empty"]) == (4, ["made 1", "made 3"])
    assert f"made 3: {reason}" in report.to_text()
