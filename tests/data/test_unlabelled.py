"""A second set without labels: its images, their share of each batch, and the order of both."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from densekd.data import (
    Augment,
    CamVid,
    ImageFolder,
    SceneSet,
    TrainLoader,
    Unlabelled,
    read_image,
)
from densekd.errors import DataError, UserError
from densekd.types import SampleKey

from .conftest import make_image, truncate

CROP = Augment(crop=(8, 10), scale=(0.5, 2.0), color_jitter=0.3)


@pytest.fixture
def images(tmp_path):
    """Images of several sizes and forms, odd names, folders in folders, and what is none."""
    root = tmp_path / "some images"
    for seed, (name, size) in enumerate(
        {
            "b.png": (12, 16),
            "a b (1).PNG": (7, 30),
            "drive 1/ä.jpeg": (40, 9),
            "drive 1/deep/er/b.png": (12, 16),
            "drive.jpg/x.bmp": (5, 5),
        }.items()
    ):
        make_image(root / name, seed=seed, size=size)
    (root / "notes.txt").write_text("none")
    (root / "._b.png").write_text("none")
    make_image(root / ".thumbnails" / "b.png")
    return root


def stream(reader, images, steps, **kwargs):
    settings = {"batch_size": 3, "seed": 5, "transform": CROP, **kwargs}
    second = Unlabelled(ImageFolder(images), 2)
    return list(islice(TrainLoader(reader, unlabelled=second, **settings), steps))


def same(a, b):
    tensors = ("images", "targets", "inside", "labelled")
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
        and a.names == b.names
        and a.keys == b.keys
    )


def test_a_folder_of_any_images(images):
    reader = ImageFolder(images)
    assert [reader.name(i) for i in range(len(reader))] == [
        "a b (1).PNG",
        "b.png",
        "drive 1/deep/er/b.png",
        "drive 1/ä.jpeg",
        "drive.jpg/x.bmp",
    ]
    sample = reader.read(1)
    assert (sample.name, sample.target) == ("b.png", None)
    assert np.array_equal(sample.image, read_image(images / "b.png"))
    assert ImageFolder(images, channels=1).read(0).image.shape == (7, 30, 1)
    assert reader.paths(2) == (images / "drive 1/deep/er/b.png", None)


def test_links_are_followed_once(images, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(images)
    (images / "back").symlink_to(tmp_path / "root")
    assert len(ImageFolder(tmp_path / "root")) == 5


def test_what_is_no_folder_of_images(tmp_path):
    with pytest.raises(DataError, match="none does not exist; expected a folder of images"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no images, nor do the folders in it"):
        ImageFolder(tmp_path)
    make_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="`channels` is 2"):
        ImageFolder(tmp_path, channels=2)


def test_a_fixed_share_of_each_batch_without_labels(camvid, images):
    reader = CamVid(camvid())
    for batch in stream(reader, images, 6):
        assert batch.images.shape == (5, 3, 8, 10)
        assert batch.labelled.tolist() == [True] * 3 + [False] * 2
        assert (batch.targets[3:] == reader.ignore_index).all()
        assert [key.source for key in batch.keys] == [0, 0, 0, 1, 1]


def test_the_first_set_comes_as_it_does_alone(camvid, images):
    reader = CamVid(camvid())
    alone = islice(TrainLoader(reader, batch_size=3, seed=5, transform=CROP), 6)
    for batch, first in zip(stream(reader, images, 6), alone, strict=True):
        assert torch.equal(batch.images[:3], first.images)
        assert torch.equal(batch.targets[:3], first.targets)
        assert batch.keys[:3] == first.keys


def test_workers_and_resume_change_nothing(camvid, images):
    reader = CamVid(camvid())
    whole = stream(reader, images, 12)
    for workers in (0, 1, 2):
        later = stream(reader, images, 5, workers=workers, start_step=7)
        assert all(same(a, b) for a, b in zip(whole[7:], later, strict=True))
    other = stream(reader, images, 12, seed=6)
    assert not any(torch.equal(a.images[3:], b.images[3:]) for a, b in zip(whole, other, strict=True))  # fmt: skip


def test_ranks_share_one_stream(camvid, images):
    reader = CamVid(camvid())
    second = Unlabelled(ImageFolder(images), 4)
    alone = TrainLoader(reader, batch_size=6, seed=5, transform=CROP, unlabelled=second)
    ranks = [stream(reader, images, 6, rank=r, world_size=2) for r in range(2)]
    for step, batch in enumerate(islice(alone, 6)):
        joined = [ranks[r][step].images for r in range(2)]
        assert torch.equal(torch.cat([part[:3] for part in joined]), batch.images[:6])
        assert torch.equal(torch.cat([part[3:] for part in joined]), batch.images[6:])


def test_each_set_has_epochs_and_an_order_of_its_own(camvid, images):
    reader = CamVid(camvid(5))  # as many as there are unlabelled ones
    batches = stream(reader, images, 10, augment_epochs=2)
    keys = [[key for batch in batches for key in batch.keys if key.source == s] for s in (0, 1)]
    assert sorted(keys[1]) == sorted(SampleKey(e % 2, i, 1) for e in range(4) for i in range(5))
    assert [key.index for key in keys[0][:20]] != [key.index for key in keys[1]]
    seen = {}
    for batch in batches:
        for key, image in zip(batch.keys, batch.images, strict=True):
            assert torch.equal(seen.setdefault(key, image), image)


@pytest.mark.parametrize("target", ["labels", "boxes", "depth"])
def test_all_kinds_of_truth(images, target):
    reader = SceneSet(length=3, height=32, width=64, target=target)
    batch = stream(reader, images, 1, batch_size=1)[0]
    assert batch.labelled.tolist() == [True, False, False]
    if target == "labels":
        assert (batch.targets[1:] == 255).all()
    elif target == "boxes":
        assert [len(boxes.boxes) for boxes in batch.targets[1:]] == [0, 0]
    else:
        assert (batch.targets.depth[1:] == 0).all()
        assert batch.targets.intrinsics[1:].isnan().all()


def test_labels_of_the_second_set_are_ignored_whatever_they_are(camvid):
    depth = SceneSet("val", length=2, height=32, width=64, target="depth")
    loader = TrainLoader(
        CamVid(camvid()), batch_size=1, transform=CROP, unlabelled=Unlabelled(depth, 1)
    )
    batch = next(iter(loader))
    assert batch.labelled.tolist() == [True, False]
    assert batch.targets.shape == (2, 8, 10)
    assert batch.names[1].startswith("val/scene_")


def test_augmentation_of_their_own(camvid, images):
    second = Unlabelled(ImageFolder(images), 1, Augment(crop=(8, 10), scale=0.1, hflip=0))
    loader = TrainLoader(CamVid(camvid()), batch_size=1, transform=CROP, unlabelled=second)
    inside = next(iter(loader)).inside.float().mean((1, 2))
    assert inside[0] > 0.5 > inside[1]


def test_a_bad_image_stops_or_is_replaced_by_one_of_its_set(camvid, images):
    truncate(images / "b.png")
    reader = CamVid(camvid())
    with pytest.raises(DataError, match=r"b\.png"):
        stream(reader, images, 5)
    batches = stream(reader, images, 5, on_bad_file="skip")
    assert all(batch.labelled.tolist() == [True] * 3 + [False] * 2 for batch in batches)
    assert any(None in batch.keys[3:] for batch in batches)


def test_images_of_other_channels_are_refused(camvid, images):
    with pytest.raises(UserError, match="the unlabelled images have 1 channels and the labelled"):
        TrainLoader(
            CamVid(camvid()),
            batch_size=1,
            unlabelled=Unlabelled(ImageFolder(images, channels=1), 1),
        )
