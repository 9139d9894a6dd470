"""The data: what is bad, ignored, absent or of the wrong size is said; sound data is ok."""

import numpy as np
import pytest

from densekd.config.load import make_config
from densekd.data import SceneSet
from densekd.data.base import Sample
from densekd.data.check import sample_report
from densekd.errors import DataError
from densekd.workflows.doctor.data import size_findings, split_findings, spread_sizes


class Made:
    """Three class maps of one's own making."""

    classes = ("road", "sky", "car")
    palette = ((0, 0, 0),) * 3
    ignore_index = 255
    channels = 3

    def __init__(self, labels, size=(8, 12), bad=False):
        self.labels, self.size, self.bad = labels, size, bad

    def __len__(self):
        return 3

    def name(self, index):
        return str(index)

    def read(self, index):
        if self.bad:
            raise DataError(f"{index}.png: label 77 is none of the 3 classes")
        target = np.full(self.size, 255, np.uint8)
        target[: len(self.labels)] = np.array(self.labels, np.uint8)[:, None]
        return Sample(np.zeros((*self.size, 3), np.uint8), target, str(index))


def levels(reader):
    return [f.level for f in split_findings("train", sample_report(reader))]


def test_sound_data_is_ok():
    assert levels(Made([0, 1, 2, 0, 1, 2, 0, 1])) == ["ok"]
    (finding,) = split_findings("train", sample_report(Made([0, 1, 2, 0, 1, 2])))
    assert "3 images, 3 tried: 12x8; 3 classes, 3 labelled, 25.0% of the pixels" in finding.what


def test_a_label_out_of_range_is_an_error():
    (finding,) = split_findings("train", sample_report(Made([], bad=True)))
    assert finding.level == "error"
    assert "3 of 3 samples tried are bad: 0.png: label 77" in finding.what


def test_many_ignored_pixels_and_an_absent_class():
    ignored, absent, ok = split_findings("train", sample_report(Made([0, 1])))
    assert (ignored.level, "75% of the pixels are ignored" in ignored.what) == ("warning", True)
    assert (absent.level, "car never occur" in absent.what) == ("note", True)
    assert ok.level == "ok"


@pytest.mark.parametrize(
    ("crop", "scale", "setting"),
    [([8, 12], [1, 1], None), ([16, 24], [1, 2], None), ([16, 24], [1, 1.5], "data.crop")],
)
def test_a_crop_that_is_always_padded(tiny_tree, crop, scale, setting):
    tiny_tree["data"].update(crop=crop, scale=scale)
    report = sample_report(Made([0]))
    found = size_findings(make_config(tiny_tree, "test"), report, report)
    assert [f.setting for f in found] == ([setting] if setting else [])


def test_padded_evaluation_batches(tiny_tree):
    report = sample_report(Made([0]))
    tiny_tree["data"]["crop"] = [8, 8]
    tiny_tree["evaluate"] = {"batch_size": 4}
    config = make_config(tiny_tree, "test")
    assert size_findings(config, report, report) == []
    report.sizes["20x10"] = 1
    (finding,) = size_findings(config, report, report)
    assert finding.setting == "evaluate.batch_size"


def test_sizes_to_try():
    report = sample_report(SceneSet(split="val", length=2, height=32, width=64))
    assert spread_sizes(report) == [(32, 64)]
    report.sizes = {"64x32": 2, "10x10": 1, "99x99": 1, "70x32": 1}
    assert spread_sizes(report) == [(32, 64), (10, 10), (99, 99)]
