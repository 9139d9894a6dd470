import numpy as np

from benchmarks import data_path


def test_data_path(dry):
    found, printed = dry(data_path)
    assert set(found["sets"]) == set(data_path.SETS)
    for about in found["sets"].values():
        assert about["times_faster"][data_path.BASE]["median"] == 1
        assert about["times_faster"][f"{data_path.BASE}, jitter"]["median"] == 1
        assert about["times_faster"]["disk, jitter"]["count"] == 2
        # Three bytes and a label a pixel, and where each begins.
        assert 4 * 4 * 64 * 128 <= about["cache_bytes"] <= 4 * (4 * 64 * 128 + 64)
    assert "| 480x360 png | ram, jitter |" in printed


def test_the_sets_are_what_they_were_made_of(tmp_path):
    reader = data_path.make_set(None, tmp_path, (128, 256), ".png", 2)
    for index, (image, labels) in enumerate(data_path.pictures(None, 2)):
        sample = reader.read(index)
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.target[labels < 12], labels[labels < 12])
