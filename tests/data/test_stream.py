from __future__ import annotations

from itertools import islice

import torch

from densekd.data import Augment, CamVid, TrainLoader
from densekd.data.stream import order
from densekd.types import SampleKey

from .conftest import truncate

CROP = Augment(crop=(8, 10), scale=(0.5, 2.0), color_jitter=0.3)


def stream(reader, steps, **kwargs):
    settings = {"batch_size": 3, "seed": 5, "transform": CROP, **kwargs}
    return list(islice(TrainLoader(reader, **settings), steps))


def same(a, b):
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.inside, b.inside)
        and a.names == b.names
    )


def test_workers_and_resume_change_nothing(camvid):
    reader = CamVid(camvid())
    whole = stream(reader, 12)
    for workers in (0, 1, 2):
        later = stream(reader, 5, workers=workers, start_step=7)
        assert all(same(a, b) for a, b in zip(whole[7:], later, strict=True))
    assert not all(same(a, b) for a, b in zip(whole, stream(reader, 12, seed=6), strict=True))


def test_ranks_share_one_stream(camvid):
    """Two ranks of batch 2 see what one process of batch 4 sees."""
    reader = CamVid(camvid())
    alone = stream(reader, 6, batch_size=4)
    ranks = [stream(reader, 6, batch_size=2, rank=r, world_size=2) for r in range(2)]
    for step in range(6):
        joined = torch.cat([ranks[r][step].images for r in range(2)])
        assert torch.equal(joined, alone[step].images)


def test_each_epoch_has_each_sample_once_in_a_new_order(camvid):
    reader = CamVid(camvid(5))
    names = [name for batch in stream(reader, 10, batch_size=4) for name in batch.names]
    epochs = [names[i : i + 5] for i in range(0, 40, 5)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert epochs[2] == [reader.name(i) for i in order(5, 2, 5)]


def test_augmentations_repeat_after_some_epochs(camvid):
    """Images and targets are a function of the key, whatever the order in which they come."""
    reader = CamVid(camvid(5))
    seen = {}
    for batch in stream(reader, 20, batch_size=4, augment_epochs=2):
        for key, image, target in zip(batch.keys, batch.images, batch.targets, strict=True):
            first = seen.setdefault(key, (image, target))
            assert torch.equal(first[0], image)
            assert torch.equal(first[1], target)
    assert sorted(seen) == [
        SampleKey(epoch, index, source=0) for epoch in range(2) for index in range(5)
    ]
    assert len({image.numpy().tobytes() for image, _ in seen.values()}) == 10


def test_a_stand_in_has_no_key(camvid):
    root = camvid(3)
    reader = CamVid(root)
    truncate(reader.paths(1)[0])
    (batch,) = stream(reader, 1, on_bad_file="skip")
    assert set(batch.keys) == {SampleKey(0, 0), SampleKey(0, 2), None}
    assert len(batch.keys) == 3
