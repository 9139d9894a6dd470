from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from densekd.data import Cityscapes, SceneSet, TrainLoader, sample_check
from densekd.data.scenes import CLASSES
from densekd.data.scenes.export import write_cityscapes
from densekd.errors import UserError

SMALL = {"length": 3, "height": 32, "width": 64}


def test_read():
    reader = SceneSet(**SMALL)
    sample = reader.read(2)
    assert sample.image.shape == (32, 64, 3)
    assert sample.target.shape == (32, 64)
    assert (sample.image.dtype, sample.target.dtype) == (np.uint8, np.uint8)
    assert set(np.unique(sample.target)) <= {*range(reader.num_classes), reader.ignore_index}
    assert sample.name == reader.name(2) == "train/scene_000002"
    assert len(reader.palette) == len(reader.classes) == reader.num_classes
    assert reader.paths(0) == (None, None)
    with pytest.raises(IndexError):
        reader.read(3)


def test_the_cache_changes_nothing():
    cached, plain = SceneSet(**SMALL), SceneSet(**SMALL, cache=False)
    for reader in (cached, cached, pickle.loads(pickle.dumps(cached))):
        sample = reader.read(1)
        np.testing.assert_array_equal(sample.image, plain.read(1).image)
        np.testing.assert_array_equal(sample.target, plain.read(1).target)
        sample.image[:] = 0  # a caller's change must not reach the cache


def test_splits_and_seeds_differ():
    images = [
        SceneSet(split, seed=seed, **SMALL).read(0).image.tobytes()
        for split in ("train", "val", "test")
        for seed in (0, 1)
    ]
    assert len(set(images)) == 6


def test_workers_fill_the_cache_of_all():
    reader = SceneSet(**SMALL)
    batches = [
        list(islice(TrainLoader(reader, batch_size=2, workers=workers), 3)) for workers in (1, 0)
    ]
    assert reader._ready.all()
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.images, b.images)


def test_wrong_settings():
    with pytest.raises(UserError, match="Did you mean 'val'"):
        SceneSet("vall")
    with pytest.raises(UserError, match="length is 0"):
        SceneSet(length=0)


def test_written_as_cityscapes_they_read_the_same(tmp_path):
    root = tmp_path / "scenes"
    write_cityscapes(root, splits={"train": 2, "val": 1}, height=32, width=64, depth=False)
    names = ["traffic sign" if name == "sign" else name for name in CLASSES]
    files, scenes = Cityscapes(root, classes=names), SceneSet(**SMALL)
    assert (len(files), len(Cityscapes(root, "val"))) == (2, 1)
    for i in range(2):
        np.testing.assert_array_equal(files.read(i).image, scenes.read(i).image)
        np.testing.assert_array_equal(files.read(i).target, scenes.read(i).target)
    assert sample_check(Cityscapes(root)) == []
