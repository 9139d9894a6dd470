from __future__ import annotations

import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from densekd.data import (
    BoxTarget,
    Cityscapes,
    Coco,
    DepthFolder,
    SceneSet,
    TrainLoader,
    sample_check,
)
from densekd.errors import UserError
from densekd.scenes import CLASSES, render_scene
from densekd.scenes.export import write_cityscapes

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
    with pytest.raises(UserError, match="`length` is 0"):
        SceneSet(length=0)
    with pytest.raises(UserError, match="`labelled` is 3; expected 1 to 2"):
        SceneSet(length=2, labelled=3)
    with pytest.raises(UserError, match="every scene has a label; leave it out, or set `labelled`"):
        SceneSet(allow_unlabelled=True)


@pytest.mark.parametrize("target", ["labels", "boxes", "depth"])
def test_labels_of_the_first_scenes_alone(target):
    settings = {**SMALL, "length": 3, "target": target}
    whole, few = SceneSet(**settings), SceneSet(**settings, labelled=2)
    mixed = SceneSet(**settings, labelled=2, allow_unlabelled=True)
    assert (len(whole), len(few), len(mixed)) == (3, 2, 3)
    for reader in (few, mixed):
        for index in range(len(reader)):
            assert np.array_equal(reader.read(index).image, whole.read(index).image)
            assert (reader.read(index).target is None) == (index == 2)


@pytest.mark.parametrize("target", ["labels", "boxes", "depth"])
def test_unlabelled_scenes_are_said_to_be_so_in_a_batch(target):
    reader = SceneSet(**{**SMALL, "length": 4}, target=target, labelled=1, allow_unlabelled=True)
    batch = next(iter(TrainLoader(reader, batch_size=4, workers=0)))
    assert int(batch.labelled.sum()) == 1


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


@pytest.mark.parametrize("cache", [True, False])
def test_boxes(cache):
    reader = SceneSet(target="boxes", cache=cache, **SMALL)
    assert (reader.task, reader.classes) == ("detection", ["car", "person", "sign"])
    assert reader.category_ids == [CLASSES.index(name) for name in reader.classes]
    assert len(reader.palette) == reader.num_classes == 3
    for i in [0, 1, 2, 0]:
        target, scene = reader.read(i).target, render_scene(0, i, height=32, width=64)
        assert isinstance(target, BoxTarget)
        np.testing.assert_array_equal(target.boxes, scene.boxes)
        assert [reader.category_ids[k] for k in target.labels] == scene.box_labels.tolist()
        assert target.areas.tolist() == [
            (scene.instances == k + 1).sum() for k in range(len(scene.boxes))
        ]
        assert not target.ignored.any()
        assert target.image_id == i
        target.boxes[:] = 0  # a caller's change must not reach the cache
    assert len(reader.read(0).target) > 0


@pytest.mark.parametrize("cache", [True, False])
def test_depth(cache):
    reader = SceneSet("val", target="depth", cache=cache, **SMALL)
    assert (reader.task, reader.classes, reader.palette) == ("depth", [], [])
    scene = render_scene(0, 100_000_001, height=32, width=64)
    for _ in range(2):
        sample = reader.read(1)
        np.testing.assert_array_equal(sample.image, scene.image)
        np.testing.assert_array_equal(sample.target.depth, scene.depth)
        assert sample.target.intrinsics == tuple(scene.intrinsics)
        sample.target.depth[:] = 0


def test_more_objects_than_the_cache_has_room_for(monkeypatch):
    monkeypatch.setattr("densekd.data.sets.scenes._ROOM", 1)
    reader = SceneSet(target="boxes", **SMALL)
    plain = SceneSet(target="boxes", cache=False, **SMALL)
    counts = [len(plain.read(i).target) for i in range(3)]
    assert max(counts) > 1
    assert [len(reader.read(i).target) for i in [0, 0, 1, 2]] == [counts[0], *counts]


def test_unknown_target():
    with pytest.raises(UserError, match="Did you mean 'labels'"):
        SceneSet(target="label")


def test_written_scenes_are_read_as_boxes_and_depth(tmp_path):
    root = tmp_path / "scenes"
    write_cityscapes(root, splits={"train": 2, "val": 1}, height=32, width=64)
    boxes, scenes = Coco(root), SceneSet(target="boxes", **SMALL)
    assert (boxes.classes, boxes.category_ids) == (scenes.classes, scenes.category_ids)
    depth = DepthFolder(
        root,
        unit="m/256",
        images="leftImg8bit",
        image_ending="_leftImg8bit.png",
        depth_ending="_depth.png",
        intrinsics="camera",
    )
    exact = SceneSet(target="depth", **SMALL)
    assert (len(boxes), len(depth), len(Coco(root, "val"))) == (2, 2, 1)
    for i in range(2):
        np.testing.assert_array_equal(boxes.read(i).image, scenes.read(i).image)
        read, true = boxes.read(i).target, scenes.read(i).target
        np.testing.assert_array_equal(read.boxes, true.boxes)
        np.testing.assert_array_equal(read.labels, true.labels)
        np.testing.assert_array_equal(read.areas, true.areas)
        assert read.image_id == true.image_id
        read, true = depth.read(i).target, exact.read(i).target
        np.testing.assert_allclose(read.depth, true.depth, atol=1 / 512)
        assert read.intrinsics == true.intrinsics
