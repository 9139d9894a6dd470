from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import chain, islice

import numpy as np
import pytest
import torch

from densekd.data import Augment, CamVid, EvalLoader, TrainLoader
from densekd.data.base import Sample
from densekd.errors import DataError, UserError
from densekd.targets import BoxTarget, DepthTarget

from .conftest import make_image, truncate

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


def test_batch(camvid):
    (batch,) = stream(CamVid(camvid()), 1)
    assert (batch.images.shape, batch.images.dtype) == ((3, 3, 8, 10), torch.uint8)
    assert (batch.targets.shape, batch.targets.dtype) == ((3, 8, 10), torch.uint8)
    assert (batch.inside.shape, batch.inside.dtype) == ((3, 8, 10), torch.bool)
    assert batch.images.is_contiguous()
    moved = batch.to(torch.device("cpu"))
    assert (moved.images.dtype, moved.targets.dtype) == (torch.float32, torch.int64)
    assert torch.equal(moved.targets, batch.targets)
    assert batch.labelled.tolist() == [True] * 3
    assert len(batch.names) == 3


def test_augmentation_differs_between_epochs(camvid):
    reader = CamVid(camvid(1))
    batches = stream(reader, 4, batch_size=1)
    assert len({batch.images.numpy().tobytes() for batch in batches}) > 1


def test_batch_larger_than_the_set(camvid):
    (batch,) = stream(CamVid(camvid(2)), 1, batch_size=7)
    assert len(batch) == 7
    assert len(set(batch.names)) == 2


def test_global_random_state_is_left_alone(camvid):
    reader = CamVid(camvid())
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    stream(reader, 2)
    list(EvalLoader(reader))
    assert torch.equal(before, torch.random.get_rng_state())


def test_epoch_counts_what_was_seen(camvid):
    loader = TrainLoader(CamVid(camvid(5)), batch_size=2, world_size=2)
    assert loader.epoch(10) == 8.0


def test_whole_images_of_different_size_are_padded(camvid):
    root = camvid(2)
    make_image(root / "train/0.png", size=(20, 9))
    (root / "trainannot/0.png").unlink()
    reader = CamVid(root, allow_unlabelled=True)
    (batch,) = EvalLoader(reader, batch_size=2, fill=(9, 8, 7))
    assert batch.images.shape == (2, 3, 20, 16)
    assert batch.labelled.tolist() == [False, True]
    assert batch.inside.sum((1, 2)).tolist() == [20 * 9, 12 * 16]
    assert batch.images[0, :, 0, -1].tolist() == [9, 8, 7]
    assert (batch.targets[0] == 255).all()
    assert (batch.targets[~batch.inside] == 255).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_sample_once(camvid, workers):
    reader = CamVid(camvid(7))
    for world_size in (1, 2, 3, 9):
        for batch_size in (1, 2) if workers == 0 else (2,):
            loaders = [
                EvalLoader(
                    reader, batch_size=batch_size, rank=r, world_size=world_size, workers=workers
                )
                for r in range(world_size)
            ]
            batches = [list(loader) for loader in loaders]
            assert [len(some) for some in batches] == [len(loader) for loader in loaders]
            names = [name for some in batches for batch in some for name in batch.names]
            assert sorted(names) == [reader.name(i) for i in range(7)]
        if workers:
            break
    loader = EvalLoader(reader, limit=3, workers=workers)
    assert [b.names[0] for b in loader] == [b.names[0] for b in loader]
    assert len(loader) == 3
    np.testing.assert_array_equal(
        next(iter(loader)).images[0].permute(1, 2, 0).numpy(), reader.read(0).image
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_stops_with_its_name(camvid, workers):
    root = camvid()
    reader = CamVid(root)
    truncate(root / "train/2.png")
    with pytest.raises(DataError, match=r"^\S*train/2\.png is truncated") as caught:
        stream(reader, 5, workers=workers)
    assert type(caught.value) is DataError
    with pytest.raises(DataError, match=r"train/2\.png is truncated"):
        list(EvalLoader(reader, workers=workers))


def test_a_bad_file_is_skipped_and_noted(camvid):
    root = camvid()
    reader = CamVid(root)
    whole = stream(reader, 5)
    truncate(root / "train/2.png")
    runs = []
    for workers in (0, 2):
        loader = TrainLoader(
            reader, batch_size=3, seed=5, transform=CROP, workers=workers, on_bad_file="skip"
        )
        runs.append(list(islice(loader, 5)))
        assert list(loader.skipped) == ["train/2.png"]
        assert "truncated" in loader.skipped["train/2.png"]
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    for before, after in zip(whole, runs[0], strict=True):
        for i, name in enumerate(before.names):
            # All else stays as it was; the bad one's place is taken by the next of its epoch.
            assert (after.names[i] == name) == (name != "train/2.png")
            assert torch.equal(before.images[i], after.images[i]) == (name != "train/2.png")
    evaluation = EvalLoader(reader, on_bad_file="skip")
    assert len([batch.names for batch in evaluation]) == 4
    assert list(evaluation.skipped) == ["train/2.png"]


def test_nothing_readable_ends(camvid):
    root = camvid(3)
    reader = CamVid(root)
    for i in range(3):
        truncate(root / f"train/{i}.png")
    with pytest.raises(DataError, match=r"none of 3 samples is readable; first: .*truncated"):
        stream(reader, 1, on_bad_file="skip")


def test_loaders_can_be_sent_to_spawned_workers(camvid):
    reader = CamVid(camvid())
    loader = pickle.loads(pickle.dumps(TrainLoader(reader, batch_size=2, transform=CROP)._loader))
    assert loader.num_workers == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0}, {"workers": -1}, {"rank": 2, "world_size": 2}, {"seed": -1},
        {"start_step": -1}, {"augment_epochs": 0}, {"on_bad_file": "ignore"}, {"transform": Augment(ignore_index=0)},
    ],
)  # fmt: skip
def test_wrong_settings(camvid, wrong):
    with pytest.raises(UserError):
        TrainLoader(CamVid(camvid(1)), **{"batch_size": 1, **wrong})


SCRIPT = """
import os, signal, sys, time
from densekd.data import CamVid, TrainLoader
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told\\n"))  # print may be in the middle of one
stream = iter(TrainLoader(CamVid(sys.argv[1]), batch_size=2, workers=2))
next(stream)  # from the first worker; the next is the second's, so both are up
print(next(stream).names, flush=True)
time.sleep(float(sys.argv[2]))
for _ in range(20):
    next(stream)
print("done", flush=True)
"""


def test_a_signal_to_the_group_leaves_the_workers_to_the_main_process(camvid):
    """And an unfinished stream does not keep the interpreter from ending."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(camvid()), "1"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert "train/" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)
    start = time.monotonic()
    rest, _ = process.communicate(timeout=60)
    assert rest.split() == ["told", "done"]
    assert process.returncode == 0
    assert time.monotonic() - start < 15


class Made:
    """A set of made-up samples of one task: image i is i pixels wider than the first; the last has no target."""

    classes = ("a", "b")
    palette = ((0, 0, 0), (9, 9, 9))
    ignore_index = 255
    channels = 3

    def __init__(self, task: str, length: int = 4) -> None:
        self.task = task
        self.length = length

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        return f"made/{index}"

    def paths(self, index: int) -> tuple[None, None]:
        return None, None

    def read(self, index: int) -> Sample:
        size = (12, 16 + index)
        target = None
        if index < self.length - 1:
            box = BoxTarget([[2, 3, 14, 9]] * index, [1] * index, [0] * index, [50] * index, index)
            depth = DepthTarget(np.full(size, index + 1, np.float32), (9.0, 9.0, 8.0, 6.0))
            target = box if self.task == "detection" else depth
        return Sample(np.full((*size, 3), index, np.uint8), target, self.name(index))


def test_boxes_of_whole_images():
    (batch,) = EvalLoader(Made("detection"), batch_size=4)
    assert batch.images.shape == (4, 3, 12, 19)
    assert [len(target.boxes) for target in batch.targets] == [0, 1, 2, 0]
    assert [target.size for target in batch.targets] == [(12, 16), (12, 17), (12, 18), (12, 19)]
    assert [target.image_id for target in batch.targets] == [0, 1, 2, -1]
    assert batch.targets[2].boxes.tolist() == [[2, 3, 14, 9]] * 2
    assert batch.targets[2].boxes.dtype == torch.float32
    assert batch.targets[2].labels.dtype == torch.int64
    assert batch.labelled.tolist() == [True, True, True, False]
    assert batch.to(torch.device("cpu")).targets[1].areas.tolist() == [50]


def test_depth_of_whole_images():
    (batch,) = EvalLoader(Made("depth"), batch_size=4)
    depth = batch.targets.depth
    assert depth.shape == (4, 1, 12, 19)
    known = batch.inside & batch.labelled[:, None, None]
    assert ((depth[:, 0] > 0) == known).all()
    assert depth.amax((1, 2, 3)).tolist() == [1, 2, 3, 0]
    assert batch.targets.intrinsics[1].tolist() == [9, 9, 8, 6]
    assert batch.targets.intrinsics[3].isnan().all()


@pytest.mark.parametrize("task", ["detection", "depth"])
def test_every_task_resumes_exactly(task):
    """Boxes and depth are functions of seed and place too, with any number of workers."""
    whole, later = (
        [batch.targets for batch in stream(Made(task), n, start_step=first, workers=workers)]
        for n, first, workers in ((8, 0, 0), (4, 4, 2))
    )
    if task == "detection":
        for a, b in zip(chain(*whole[4:]), chain(*later), strict=True):
            assert torch.equal(a.boxes, b.boxes)
            assert (a.image_id, a.size) == (b.image_id, b.size)
        assert len({target.boxes.numpy().tobytes() for target in chain(*whole)}) > 4
    else:
        for a, b in zip(whole[4:], later, strict=True):
            assert torch.equal(a.depth, b.depth)
            assert torch.equal(a.intrinsics.nan_to_num(-1), b.intrinsics.nan_to_num(-1))
        assert len({targets.intrinsics.numpy().tobytes() for targets in whole}) == 8
