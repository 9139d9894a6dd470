"""Exact resume as a property: wherever a run is killed, and however often, it ends as the uninterrupted run does."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from densekd.distill.distiller import Distiller
from densekd.distill.stored.records import RecordFile
from densekd.engine.folder import RunFolder
from densekd.engine.log import Log, read_metrics
from densekd.engine.step import Step
from densekd.engine.trainer import Training
from densekd.tasks import Segmentation
from tests.reliability.runs import go, small_tree

# Where a kill may fall: around every call of these.
MOMENTS = [
    (Training, "save"), (Training, "save_student"), (Step, "__call__"), (Step, "_apply"), (Distiller, "student_phase"),
    (Segmentation, "predict"), (Log, "_write"), (RecordFile, "write"), (torch, "save"), (os, "fsync"), (os, "replace"),
    (os, "link"),
]  # fmt: skip


class Killed(BaseException):
    """As a kill: nothing but the clearing up of context managers runs after it."""


@contextmanager
def killed_at(moment: int | None) -> Iterator[list[int]]:
    """Raise `Killed` at that moment of all; gives a list with the number of moments so far."""
    passed = [0]

    def tick() -> None:
        passed[0] += 1
        if passed[0] == moment:
            raise Killed

    def around(function):
        def call(*arguments, **more):
            tick()
            result = function(*arguments, **more)
            tick()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in MOMENTS:
            patch.setattr(owner, name, around(getattr(owner, name)))
        yield passed


def recipe(folder: Path) -> dict:
    """All that holds state: a discriminator, an average, accumulation, a store of the teacher, evaluations between."""
    tree = small_tree(steps=4, save_every=2, evaluate_every=3, ema=0.9, accumulate=2)
    tree["data"] |= {"augment_epochs": 2, "scale": [0.8, 1.2]}
    tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "allow_untrained": True}
    tree["distill"] = {
        "pixel_wise": {"weight": 1},
        "holistic": {"weight": 0.1, "channels": 4},
        "teacher_cache": {"folder": str(folder / "store")},
    }
    return tree


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, and how many moments it has."""
    folder = tmp_path_factory.mktemp("whole")
    with killed_at(None) as passed:
        assert go(recipe(folder), folder / "r", distil=True) == 0
    return RunFolder(folder / "r"), passed[0]


def values(folder: RunFolder) -> list[dict]:
    left_out = {"images_per_s", "memory_gb"}
    return [
        {k: v for k, v in row.items() if k not in left_out} for row in read_metrics(folder.metrics)
    ]


def try_kills(seed: int, whole: tuple[RunFolder, int], folder: Path) -> None:
    draw, tree = random.Random(seed), recipe(folder)
    expected, moments = whole
    history = []
    for _ in range(draw.randint(1, 3)):
        history.append(draw.randint(1, moments))
        with killed_at(history[-1]):
            try:
                go(tree, folder / "r", distil=True, resume=True)
            except Killed:
                continue
    assert go(tree, folder / "r", distil=True, resume=True) == 0
    found = RunFolder(folder / "r")
    assert found.student.read_bytes() == expected.student.read_bytes(), history
    assert found.best.read_bytes() == expected.best.read_bytes(), history
    assert values(found) == values(expected), history
    scores = [json.loads(f.result.read_text())["scores"] for f in (found, expected)]
    assert scores[0] == scores[1], history


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere(seed, whole, tmp_path):
    try_kills(seed, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 23))
def test_killed_anywhere_more_often(seed, whole, tmp_path):
    try_kills(seed, whole, tmp_path)
