from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from densekd.data import Augment, CamVid, DepthFolder, EvalLoader, SceneSet, TrainLoader
from densekd.data.base import Sample
from densekd.data.cache.store import cached
from densekd.errors import DataError, UserError
from densekd.targets import BoxTarget, DepthTarget

from ..conftest import make_image, make_labels, truncate
from ..made import Mixed


class Counting:
    """A reader that counts what it decodes."""

    def __init__(self, reader):
        self.reader = reader
        self.decoded = []

    def __getattr__(self, name):
        if name == "reader":
            raise AttributeError(name)
        return getattr(self.reader, name)

    def __getstate__(self):
        return {"reader": self.reader, "decoded": []}

    def __len__(self):
        return len(self.reader)

    def read(self, index):
        self.decoded.append(index)
        return self.reader.read(index)


def keep(reader, folder, **settings):
    return cached({"train": reader}, folder=folder, budget_gb=1, **settings)["train"]


def plain(sample: Sample) -> list:
    """A sample as a list of arrays (with their types) and numbers."""
    target = sample.target
    if isinstance(target, BoxTarget):
        parts = [target.boxes, target.labels, target.ignored, target.areas, target.image_id]
    elif isinstance(target, DepthTarget):
        parts = [target.depth, target.intrinsics]
    else:
        parts = [target]
    arrays = [sample.image, *parts]
    return [
        sample.name,
        type(target),
        *(((a.dtype, a.shape, a.tobytes()) if isinstance(a, np.ndarray) else a) for a in arrays),
    ]


def scenes(target):
    return SceneSet(length=3, height=32, width=64, target=target)


def depth_folder(root):
    for i in range(2):
        make_image(root / "train/images" / f"{i}.png", seed=i)
        make_labels(root / "train/depth" / f"{i}.png", np.arange(192).reshape(12, 16) + 500)
        (root / "train/camera").mkdir(exist_ok=True)
        camera = {"fx": 9.0, "fy": 8.0, "cx": 1.0 + i, "cy": 2.0}
        (root / "train/camera" / f"{i}_camera.json").write_text(json.dumps(camera))
    return DepthFolder(root, unit="mm", intrinsics="camera")


@pytest.mark.parametrize("place", ["disk", "ram"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda root: Mixed("segmentation"), lambda root: Mixed("depth", channels=1),
        lambda root: Mixed("detection", channels=4), lambda root: scenes("labels"),
        lambda root: scenes("boxes"), lambda root: scenes("depth"), depth_folder,
    ],
)  # fmt: skip
def test_equals_the_reader_bit_for_bit(tmp_path, make, workers, place):
    reader = make(tmp_path)
    folder = tmp_path / "cache" if place == "disk" else None
    told, steps = [], []
    kept = keep(
        reader, folder, workers=workers, say=told.append, progress=lambda *a: steps.append(a)
    )
    assert len(kept) == len(reader)
    for again in range(2):
        for index in range(len(reader)):
            sample = kept.read(index)
            assert plain(sample) == plain(reader.read(index)), again
            assert not sample.image.flags.writeable
    assert steps == [("train", i, len(reader)) for i in range(len(reader) + 1)]
    (line,) = told
    assert f"{len(reader)} of {len(reader)} images" in line
    assert kept.task == reader.task
    assert kept.classes == reader.classes
    assert not hasattr(kept, "no_such_thing")


def test_the_next_run_decodes_nothing(camvid, tmp_path):
    root = camvid()
    keep(CamVid(root), tmp_path / "cache")
    reader, told = Counting(CamVid(root)), []
    # Another class of reader may read in another way.
    assert [keep(reader, tmp_path / "cache").read(i).name for i in range(5)]
    reader.decoded.clear()
    kept = keep(reader, tmp_path / "cache", say=told.append)
    samples = [plain(kept.read(i)) for i in range(5)]
    assert reader.decoded == told == []
    assert samples == [plain(CamVid(root).read(i)) for i in range(5)]


def test_an_edited_file_is_decoded_again(camvid, tmp_path):
    root = camvid()
    reader = Counting(CamVid(root))
    keep(reader, tmp_path / "cache")
    image, _ = reader.paths(3)
    before = image.stat()
    make_image(image, seed=77)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and cp -p do
    make_labels(reader.paths(1)[1], [1, 2, 3])
    reader.decoded.clear()
    kept = keep(reader, tmp_path / "cache")
    assert set(reader.decoded) == {1, 3}
    for index in range(5):
        assert plain(kept.read(index)) == plain(CamVid(root).read(index))


def test_a_camera_file_belongs_to_its_sample(tmp_path):
    reader = depth_folder(tmp_path)
    assert keep(reader, tmp_path / "cache").read(1).target.intrinsics == (9, 8, 2, 2)
    camera = {"fx": 5.0, "fy": 8.0, "cx": 2.0, "cy": 2.0}
    (tmp_path / "train/camera/1_camera.json").write_text(json.dumps(camera))
    assert keep(reader, tmp_path / "cache").read(1).target.intrinsics == (5, 8, 2, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2), ("a", b"a"), ([1, 2], (1, 2)), ([[1], 2], [[1, 2]]), ({"a": 1}, {"b": 1}), ({1}, {2}),
        (np.zeros(3), np.ones(3)), (np.zeros(4), np.zeros((2, 2))), (Path("a"), Path("b")),
        (functools.partial(np.multiply, 2), functools.partial(np.multiply, 3)),
        (Mixed("depth", 3), Mixed("depth", 4)), (CamVid, SceneSet), (plain, scenes),
    ],
)  # fmt: skip
def test_other_settings_are_another_set(tmp_path, one, other):
    """One folder, two ways to read: neither is served the other's samples."""
    for value in (one, other):
        reader = Mixed("depth")
        reader.setting = value
        counting = Counting(reader)
        keep(counting, tmp_path)
        assert set(counting.decoded) == set(range(5))
        counting.decoded.clear()
        keep(counting, tmp_path)
        assert counting.decoded == []


def test_space_of_replaced_records_is_bounded(camvid, tmp_path):
    root = camvid(4)
    reader = CamVid(root)
    sizes = []
    for seed in range(12):
        make_image(reader.paths(seed % 2)[0], seed=seed)
        kept = keep(reader, tmp_path / "cache")
        sizes.append(kept.size)
        assert plain(kept.read(1)) == plain(reader.read(1))
    assert max(sizes) <= 2.5 * min(sizes)
    assert len(list((tmp_path / "cache/train").glob("data-*"))) == 1


def flip_a_byte(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, 700, 1500])
def test_a_damaged_record_is_noticed_and_mended(camvid, tmp_path, at):
    reader = Counting(CamVid(camvid()))
    keep(reader, tmp_path / "cache")
    (data,) = (tmp_path / "cache/train").glob("data-*")
    whole = data.read_bytes()
    flip_a_byte(data, at)
    reader.decoded.clear()
    kept = keep(reader, tmp_path / "cache")
    assert [plain(kept.read(i)) for i in range(5)] == [
        plain(reader.reader.read(i)) for i in range(5)
    ]
    assert len(reader.decoded) == 1
    assert data.read_bytes() == whole


def test_a_truncated_file_is_noticed(camvid, tmp_path):
    reader = Counting(CamVid(camvid()))
    keep(reader, tmp_path / "cache")
    (data,) = (tmp_path / "cache/train").glob("data-*")
    os.truncate(data, data.stat().st_size - 1000)
    reader.decoded.clear()
    kept = keep(reader, tmp_path / "cache")
    assert len(set(reader.decoded)) == 2  # the last record was cut, the one before lost its end
    assert [plain(kept.read(i)) for i in range(5)] == [
        plain(reader.reader.read(i)) for i in range(5)
    ]


@pytest.mark.parametrize("damage", ["cut", "flip", "first", "gone"])
def test_a_damaged_index_is_noticed(camvid, tmp_path, damage):
    reader = CamVid(camvid())
    keep(reader, tmp_path / "cache")
    index = tmp_path / "cache/train/index"
    if damage == "cut":
        os.truncate(index, index.stat().st_size - 20)
    elif damage == "gone":
        index.unlink()
    else:
        flip_a_byte(index, 12 if damage == "first" else 300)
    for _ in range(2):
        kept = keep(reader, tmp_path / "cache")
        assert [plain(kept.read(i)) for i in range(5)] == [plain(reader.read(i)) for i in range(5)]
    assert len(index.read_bytes().split(b"\n")) >= 6


def test_an_unreadable_file_is_the_readers_business(camvid, tmp_path):
    root = camvid()
    reader = CamVid(root)
    truncate(reader.paths(2)[0])
    kept = keep(reader, tmp_path / "cache", workers=2)
    with pytest.raises(DataError, match=r"train/2\.png is truncated"):
        kept.read(2)
    streams = [
        islice(TrainLoader(r, batch_size=3, seed=1, on_bad_file="skip"), 6) for r in (reader, kept)
    ]
    for a, b in zip(*streams, strict=True):
        assert (a.names, a.keys) == (b.names, b.keys)
        assert torch.equal(a.images, b.images)


@pytest.mark.parametrize("place", ["disk", "ram"])
@pytest.mark.parametrize("task", ["segmentation", "depth", "detection"])
def test_the_stream_is_the_same(tmp_path, task, place):
    """With the cache and without, with workers and without, resumed or not."""
    reader = Mixed(task)
    kept = keep(reader, tmp_path if place == "disk" else None)
    augment = Augment(crop=(8, 10), scale=(0.5, 2.0), color_jitter=0.3)
    settings = {"batch_size": 3, "seed": 5, "transform": augment}
    whole = list(islice(TrainLoader(reader, **settings), 7))
    for workers in (0, 2):
        later = islice(TrainLoader(kept, **settings, workers=workers, start_step=3), 4)
        for a, b in zip(whole[3:], later, strict=True):
            assert torch.equal(a.images, b.images)
            assert a.keys == b.keys
            assert pickle.dumps(flat(a.targets)) == pickle.dumps(flat(b.targets))
    for a, b in zip(EvalLoader(reader), EvalLoader(kept), strict=True):
        assert torch.equal(a.images, b.images)
        assert pickle.dumps(flat(a.targets)) == pickle.dumps(flat(b.targets))


def flat(targets):
    """Tensors of a batch's targets as lists."""
    if isinstance(targets, torch.Tensor):
        return targets.tolist()
    if isinstance(targets, list):
        return [flat(vars(target)) for target in targets]
    values = targets if isinstance(targets, dict) else vars(targets)
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def test_beyond_the_budget_nothing_is_done(camvid, tmp_path):
    reader = CamVid(camvid())
    folder = tmp_path / "cache"
    told = []
    for place in (folder, None):
        with pytest.raises(UserError, match=r"kB decoded and `budget_gb` is 1e-06"):
            cached({"train": reader}, folder=place, budget_gb=1e-6, say=told.append)
    assert not folder.exists()
    assert len(told) == 2


def test_the_budget_is_of_all_sets_together(tmp_path):
    sets = {"train": Mixed("depth", 40), "val": Mixed("segmentation", 40)}
    one, two = (keep(reader, tmp_path / name).size / 1e9 for name, reader in sets.items())
    cached(sets, folder=tmp_path / "both", budget_gb=1.1 * (one + two))
    with pytest.raises(UserError, match="`budget_gb` is"):
        cached(sets, folder=tmp_path / "again", budget_gb=0.6 * (one + two))


class Growing(Mixed):
    """Samples that an estimate from a few does not foresee."""

    def read(self, index):
        sample = super().read(index)
        if index % 7:
            return sample
        return Sample(np.zeros((12, 17, 3), np.uint8), None, sample.name)


def test_what_was_not_foreseen_is_no_excuse(tmp_path):
    """The estimate sees the small ones alone: 0, 7, ..., 49."""
    with pytest.raises(UserError, match="more than was estimated"):
        cached({"train": Growing("depth", 50)}, folder=tmp_path, budget_gb=50 * 800 / 1e9)


def test_a_full_disk_is_said_before(camvid, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(UserError, match=r"has 100 bytes free. Set `folder`"):
        keep(CamVid(camvid()), tmp_path / "cache")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "train").write_text("a file")
    for folder in (tmp_path, tmp_path / "train" / "below"):
        with pytest.raises(UserError, match=r"cannot be used: .*Set `folder`"):
            keep(Mixed("depth"), folder)


def test_without_file_locks_only_the_cache_is_missing():
    """As on Windows."""
    code = (
        "import sys\n"
        "sys.modules['fcntl'] = None\n"
        "import densekd.data\n"
        "from densekd.errors import UserError\n"
        "try:\n"
        "    densekd.data.cached({}, folder=None, budget_gb=1)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "leave it out" in done.stdout


def test_what_cannot_be_told_apart_is_refused(tmp_path):
    reader = Mixed("depth")
    reader.file = open(__file__)  # noqa: SIM115
    with reader.file, pytest.raises(UserError, match="TextIOWrapper"):
        keep(reader, tmp_path)

    class Pathless(Mixed):
        def __getattribute__(self, name):
            if name == "sources":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(UserError, match=r"sources\(index\)"):
        keep(Pathless("depth"), tmp_path)
    assert plain(keep(Pathless("depth"), None).read(1)) == plain(reader.read(1))


def test_targets_of_another_kind_are_refused(tmp_path):
    class Other(Mixed):
        def read(self, index):
            return Sample(np.zeros((2, 2, 3), np.uint8), {"boxes": 1}, "x")

    with pytest.raises(UserError, match="targets of dict"):
        keep(Other("depth"), None)


def test_goes_to_spawned_processes():
    """Without copying: the other process maps the same memory."""
    kept = keep(Mixed("segmentation"), None)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=_take, initargs=(kept,)) as pool:
        assert pool.map(_name_and_sum, [1, 2]) == [_name_and_sum(i, kept) for i in (1, 2)]


def _take(kept):
    global _taken
    _taken = kept


def _name_and_sum(index, kept=None):
    sample = (kept or _taken).read(index)
    return sample.name, int(sample.image.sum()), int(sample.target.sum())


class Slow(Mixed):
    def read(self, index):
        time.sleep(0.03)
        return super().read(index)


def start(folder, workers=2):
    """A process that fills, and the lines that it says."""
    here, there = os.pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_fill, args=(folder, workers, there))
    process.start()
    os.close(there)
    return process, open(here)


def _fill(folder, workers, there):
    def say(*what):
        os.write(there, f"{what[-2] if len(what) > 1 else what[0]}\n".encode())

    torch.set_num_threads(1)
    keep(Slow("segmentation", 30), folder, workers=workers, progress=say, say=say)
    say("filled")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_build_goes_on(tmp_path, number):
    process, lines = start(tmp_path)
    with lines:
        assert "30 of 30 images" in lines.readline()
        while int(lines.readline()) < 10:
            pass
        os.kill(process.pid, number)
        process.join(30)
    assert process.exitcode not in (0, None)
    reader, told = Slow("segmentation", 30), []
    first = []
    kept = keep(reader, tmp_path, progress=lambda *a: first.append(a), say=told.append)
    assert 10 <= first[0][1] < 30  # what was there already
    assert [plain(kept.read(i)) for i in range(30)] == [plain(reader.read(i)) for i in range(30)]


def test_a_wish_to_stop_is_heard(tmp_path):
    done = []
    settings = {"progress": lambda name, count, total: done.append(count)}
    kept = keep(Mixed("depth", 20), tmp_path, stopped=lambda: done and done[-1] >= 5, **settings)
    assert done == [0, 1, 2, 3, 4, 5]
    assert plain(kept.read(17)) == plain(Mixed("depth", 20).read(17))
    done.clear()
    keep(Mixed("depth", 20), tmp_path, **settings)
    assert done == list(range(5, 21))


def test_two_processes_build_one_set(tmp_path):
    """One fills, the other waits and finds the work done."""
    started = [start(tmp_path, workers=0) for _ in range(2)]
    outputs = []
    for process, lines in started:
        with lines:
            outputs.append(lines.read().split("\n"))
        process.join(30)
    assert all("filled" in lines for lines in outputs)
    counts = [sum(line.isdecimal() for line in lines) for lines in outputs]
    assert sorted(counts) == [0, 31]
    assert sum("waiting" in line for lines in outputs for line in lines) == 1
    kept = keep(Slow("segmentation", 30), tmp_path)
    assert kept.read(29).name == "mixed/29"
