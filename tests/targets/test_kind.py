from __future__ import annotations

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from densekd.data import (
    Augment,
    DeviceLoader,
    EvalLoader,
    Sample,
    TrainLoader,
    cached,
    check_all,
    sample_check,
)
from densekd.errors import UserError
from densekd.targets import (
    BoxTarget,
    ClassMap,
    DepthTarget,
    check_kind,
    kind_of,
    kind_of_set,
    task_of,
)
from tests.data.normals import NormalMap, NormalReport, NormalSet


def test_the_kind_of_a_target():
    assert kind_of(np.zeros((2, 2))) is ClassMap
    assert kind_of(BoxTarget.empty()) is BoxTarget
    assert kind_of(NormalMap.empty((2, 2), 255)) is NormalMap


@pytest.mark.parametrize(
    ("says", "kind", "task"),
    [
        ({}, ClassMap, "segmentation"),
        ({"task": "segmentation"}, ClassMap, "segmentation"),
        ({"task": "detection"}, BoxTarget, "detection"),
        ({"task": "depth"}, DepthTarget, "depth"),
        ({"target": DepthTarget}, DepthTarget, "depth"),
        ({"target": NormalMap}, NormalMap, "surface normals"),
        ({"target": NormalMap, "task": "normals"}, NormalMap, "normals"),
        (
            {"target": "boxes"},
            ClassMap,
            "segmentation",
        ),  # an argument of its own, kept under that name
    ],
)
def test_what_a_data_set_says(says, kind, task):
    reader = SimpleNamespace(**says)
    assert kind_of_set(reader) is kind
    assert task_of(reader) == task


def test_a_target_of_another_kind_is_said():
    assert check_kind(NormalSet(), NormalMap.empty((2, 2), 255)) is NormalMap
    with pytest.raises(UserError, match=r"NormalSet gives targets of BoxTarget .* surface normals"):
        check_kind(NormalSet(), BoxTarget.empty())


AUGMENT = Augment(crop=(10, 24), scale=(0.5, 2.0), color_jitter=0.1)


def first_batches(loader, count=6):
    return list(islice(loader, count))


def test_normals_train_with_any_number_of_workers_and_turn_with_their_image():
    settings = {"batch_size": 3, "seed": 4, "transform": AUGMENT}
    alone = first_batches(TrainLoader(NormalSet(), **settings))
    with_workers = first_batches(TrainLoader(NormalSet(), workers=2, **settings))
    for a, b in zip(alone, with_workers, strict=True):
        assert torch.equal(a.targets, b.targets)
        assert a.targets.shape == (3, 3, 10, 24)
        assert (a.targets[~a.labelled] == 0).all()
        known = a.inside & a.labelled[:, None, None]
        assert torch.equal(a.targets.norm(dim=1) > 0.5, known)
    # Red and x both grow to the right of the source; where the image is mirrored, x has the other sign.
    flips = set()
    for batch in first_batches(TrainLoader(NormalSet(), batch_size=1, transform=Augment()), 20):
        if batch.labelled.all():
            red, x = batch.images[0, 0, 0].float(), batch.targets[0, 0, 0]
            mirrored = bool(red[0] > red[-1])
            flips.add(mirrored)
            assert (
                x.diff() > 0
            ).all()  # mirrored, the falling x has its sign changed and rises again
            assert torch.equal(red.diff() < 0, torch.full((15,), mirrored))
    assert flips == {True, False}


def test_normals_are_evaluated_whole():
    (batch,) = EvalLoader(NormalSet(), batch_size=5, workers=1)
    assert batch.targets.shape == (5, 3, 16, 16)
    assert batch.labelled.tolist() == [True] * 4 + [False]
    assert batch.to(torch.device("cpu")).targets.dtype == torch.float32
    expected = torch.from_numpy(NormalSet().read(2).target.vectors).permute(2, 0, 1)
    assert torch.equal(batch.targets[2, :, :14], expected)


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_normals_are_kept_decoded(tmp_path, place):
    folder = tmp_path if place == "disk" else None
    for _ in range(2):
        kept = cached({"x": NormalSet()}, folder=folder, budget_gb=1, workers=2)["x"]
        for index in range(5):
            read, plain = kept.read(index), NormalSet().read(index)
            np.testing.assert_array_equal(read.image, plain.image)
            assert type(read.target) is type(plain.target)
            if plain.target is not None:
                np.testing.assert_array_equal(read.target.vectors, plain.target.vectors)
    streams = [
        TrainLoader(reader, batch_size=2, transform=AUGMENT) for reader in (NormalSet(), kept)
    ]
    for a, b in zip(*map(first_batches, streams), strict=True):
        assert torch.equal(a.targets, b.targets)


def test_normals_are_made_on_the_device():
    settings = {"batch_size": 3, "seed": 4, "transform": AUGMENT}
    here = first_batches(DeviceLoader(NormalSet(), device="cpu", **settings))
    for a, b in zip(first_batches(TrainLoader(NormalSet(), **settings)), here, strict=True):
        assert torch.equal(a.targets, b.targets)
        assert a.keys == b.keys


def test_a_kind_without_a_form_on_the_device_is_refused(monkeypatch):
    monkeypatch.delattr(NormalMap, "from_pixels")
    with pytest.raises(UserError, match=r"knows no surface normals.*take `TrainLoader`"):
        DeviceLoader(NormalSet(), device="cpu", batch_size=1)


def test_normals_are_checked():
    assert sample_check(NormalSet()) == []
    report = check_all(NormalSet(), workers=1)
    assert isinstance(report, NormalReport)
    assert (report.task, report.labelled, report.unlabelled) == ("surface normals", 4, 1)
    assert report.known == sum((12 + i) * 16 for i in range(4))
    assert "normals      " in report.to_text()
    assert report.to_dict()["known"] == report.known


def test_what_normals_cannot_do_is_said():
    sample = Sample(np.zeros((4, 4, 3), np.uint8), NormalMap.empty((4, 4), 255), "x")
    with pytest.raises(UserError, match="cat_max_ratio"):
        Augment(crop=(2, 2), cat_max_ratio=0.5)(sample, np.random.default_rng(0))
