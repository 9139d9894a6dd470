from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from densekd.data import Augment, CamVid, DeviceLoader, Sample, TrainLoader
from densekd.errors import DataError, UserError

from .conftest import truncate
from .made import Mixed
from .test_augment import smooth_sample

FEW = 12


class Pictures(Mixed):
    """Smooth images of several sizes; noise would show every rounding of a place as another colour."""

    def read(self, index):
        sample = super().read(index)
        size = (60 + 7 * index, 80 + 3 * index)
        picture = smooth_sample(*size, seed=index)
        target = sample.target
        if target is not None and self.task == "segmentation":
            target = picture.target.astype(np.int16)
        elif target is not None:
            target.depth = picture.image[..., 0].astype(np.float32) / 20
        channels = [0, 1, 2, 0][: self.channels]
        return Sample(picture.image[..., channels], target, sample.name)


def both(reader, steps=FEW, **settings):
    settings = {"batch_size": 3, "seed": 5, **settings}
    there = DeviceLoader(reader, device="cpu", **settings)
    return list(
        zip(islice(TrainLoader(reader, **settings), steps), islice(there, steps), strict=True)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": (40, 50), "scale": (0.5, 2.0)},
        {"crop": (90, 40), "scale": (0.5, 2.0), "color_jitter": 0.3},
        {"crop": (200, 220), "scales": [0.75, 1, 1.7], "color_jitter": (0.3, 0, 0)},
        {"scale": (0.5, 1.5), "color_jitter": (0, 0.4, 0.4)},
        {"crop": (40, 40), "short_side": 50, "hflip": 0},
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", ["segmentation", "depth"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_is_what_the_host_makes(task, channels, settings):
    reader = Pictures(task, channels=channels)
    augment = Augment(fill=(9, 8, 7, 6)[:channels], **settings)
    apart = []
    for host, here in both(reader, transform=augment):
        assert here.images.dtype == torch.uint8
        assert here.images.shape == host.images.shape
        assert here.images.is_contiguous()
        assert (here.names, here.keys) == (host.names, host.keys)
        assert torch.equal(here.inside, host.inside)
        assert torch.equal(here.labelled, host.labelled)
        padding = ~here.inside[:, None].expand_as(here.images)
        assert torch.equal(here.images[padding], host.images[padding])
        apart.append((here.images.int() - host.images.int()).abs().flatten())
        if task == "segmentation":
            assert here.targets.dtype == host.targets.dtype
            assert torch.equal(here.targets, host.targets)
        else:
            assert torch.equal(here.targets.depth, host.targets.depth)
            torch.testing.assert_close(
                here.targets.intrinsics, host.targets.intrinsics, rtol=0, atol=0, equal_nan=True
            )
    apart = torch.cat(apart)
    assert apart.max() <= (3 if "color_jitter" in settings else 1)
    assert (apart > 1).float().mean() < 0.03
    assert apart.float().mean() < 0.2


def test_nothing_to_do_gives_the_sample():
    reader = Pictures("segmentation")
    for host, here in both(reader, transform=Augment()):
        assert torch.equal(here.images, host.images)


def test_ranks_epochs_and_resume():
    reader = Pictures("segmentation")
    settings = {
        "batch_size": 2,
        "seed": 3,
        "augment_epochs": 2,
        "transform": Augment(crop=(30, 30)),
    }
    alone = list(islice(DeviceLoader(reader, device="cpu", **{**settings, "batch_size": 4}), 8))
    for rank in range(2):
        loader = DeviceLoader(
            reader, device="cpu", rank=rank, world_size=2, start_step=3, **settings
        )
        for step, batch in zip(range(3, 8), loader, strict=False):
            assert torch.equal(batch.images, alone[step].images[2 * rank : 2 * rank + 2])
            assert batch.keys == alone[step].keys[2 * rank : 2 * rank + 2]
        assert loader.epoch(10) == 8.0
    assert {key[0] for batch in alone for key in batch.keys} == {0, 1}


def test_classes_are_balanced_as_on_the_host():
    reader = Pictures("segmentation")
    augment = Augment(crop=(20, 20), cat_max_ratio=0.6)
    for host, here in both(reader, transform=augment):
        assert torch.equal(here.targets, host.targets)


def test_batches_move_as_others():
    (_, batch), *_ = both(Pictures("segmentation"))
    moved = batch.to(torch.device("cpu"))
    assert (moved.images.dtype, moved.targets.dtype) == (torch.float32, torch.int64)


def test_bad_files(camvid):
    root = camvid(4)
    reader = CamVid(root)
    truncate(reader.paths(1)[0])
    loader = DeviceLoader(reader, device="cpu", batch_size=4)
    with pytest.raises(DataError, match="truncated"):
        list(islice(loader, 2))
    for host, here in both(reader, on_bad_file="skip", steps=4):
        assert (here.names, here.keys) == (host.names, host.keys)
        assert torch.equal(here.targets, host.targets)
    for i in (0, 2, 3):
        truncate(reader.paths(i)[0])
    with pytest.raises(DataError, match="none of 4 samples"):
        next(iter(DeviceLoader(reader, device="cpu", batch_size=1, on_bad_file="skip")))


@pytest.mark.parametrize(
    ("reader", "settings", "words"),
    [
        (Mixed("detection"), {}, "knows no boxes.*take `TrainLoader`"),
        (Mixed("depth"), {"transform": Augment(crop=(4, 4), cat_max_ratio=0.5)}, "cat_max_ratio"),
        (Mixed("depth"), {"transform": lambda sample, rng: None}, "for the host"),
        (Mixed("depth"), {"transform": Augment(crop=(90, 90), fill=(1, 2))}, "fill has 2"),
        (Mixed("depth"), {"batch_size": 0}, "batch_size"),
        (Mixed("depth"), {"seed": -1}, "seed"),
        (Mixed("depth"), {"transform": Augment(ignore_index=1)}, "alike"),
    ],
)
def test_what_it_does_not_do(reader, settings, words):
    with pytest.raises(UserError, match=words):
        next(iter(DeviceLoader(reader, device="cpu", **{"batch_size": 2, **settings})))
