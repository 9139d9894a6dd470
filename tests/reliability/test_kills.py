"""Exact resume as a property: wherever a run is killed, and however often, it ends as the uninterrupted run does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from tests.cli.helpers import ENVIRONMENT, write_recipe
from tests.data.conftest import make_image
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


def recipe(folder: Path, kind: str) -> dict:
    """All that holds state, in two recipes, since some of it does not go together.

    ``store``: a discriminator, an average, accumulation, a store of the teacher that fills, evaluations between.
    ``streams``: a second stream, two teachers, a term with a memory, a cache of decoded images that fills.
    """
    if kind == "streams":
        return streams(folder)
    tree = small_tree(steps=4, save_every=2, evaluate_every=3, ema=0.9, accumulate=2)
    tree["data"] |= {"augment_epochs": 2, "scale": [0.8, 1.2]}
    tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "allow_untrained": True}
    tree["distill"] = {
        "pixel_wise": {"weight": 1},
        "holistic": {"weight": 0.1, "channels": 4},
        "teacher_cache": {"folder": str(folder / "store")},
    }
    return tree


def streams(folder: Path) -> dict:
    for i in range(5):
        make_image(folder / "photos" / f"{i}.png", seed=i, size=(40, 70))
    tree = small_tree(steps=4, save_every=2, evaluate_every=3)
    tree["data"] |= {
        "unlabelled": {"root": str(folder / "photos"), "batch_size": 1},
        "cache": "disk",
    }
    network = {"name": "espnet", "options": {"p": 1, "q": 1}, "allow_untrained": True}
    tree["teachers"] = {
        "first": network,
        "second": {"name": "espnet_c", **{k: network[k] for k in ("options", "allow_untrained")}},
    }
    tree["distill"] = {
        "pixel_wise": {"weight": 1},
        "cross_image_memory": {
            "weight": 0.1,
            "teacher_name": "first",
            "student": "b3",
            "teacher": "b3",
            "channels": 256,
            "num_classes": 9,
            "pixel_memory": 20,
            "region_memory": 10,
        },
    }
    return tree


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Decoded images are kept below `folder`, so that the cache of each test fills anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DENSEKD_CACHE", str(folder / "decoded"))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of a kind, and how many moments it has; made once."""
    made: dict[str, tuple[RunFolder, int]] = {}

    def make(kind: str) -> tuple[RunFolder, int]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            with own_cache(folder), killed_at(None) as passed:
                assert go(recipe(folder, kind), folder / "r", distil=True) == 0
            made[kind] = RunFolder(folder / "r"), passed[0]
        return made[kind]

    return make


def values(folder: RunFolder) -> list[dict]:
    left_out = {"images_per_s", "memory_gb"}
    return [
        {k: v for k, v in row.items() if k not in left_out} for row in read_metrics(folder.metrics)
    ]


def try_kills(seed: int, kind: str, whole: Callable, folder: Path) -> None:
    draw, tree = random.Random(seed), recipe(folder, kind)
    expected, moments = whole(kind)
    history = []
    for _ in range(draw.randint(1, 3)):
        history.append(draw.randint(1, moments))
        with own_cache(folder), killed_at(history[-1]):
            try:
                go(tree, folder / "r", distil=True, resume=True)
            except Killed:
                continue
    with own_cache(folder):
        assert go(tree, folder / "r", distil=True, resume=True) == 0
    found = RunFolder(folder / "r")
    assert found.student.read_bytes() == expected.student.read_bytes(), history
    assert found.best.read_bytes() == expected.best.read_bytes(), history
    assert values(found) == values(expected), history
    scores = [json.loads(f.result.read_text())["scores"] for f in (found, expected)]
    assert scores[0] == scores[1], history


@pytest.mark.parametrize(("seed", "kind"), [(0, "store"), (1, "streams"), (2, "streams")])
def test_killed_anywhere(seed, kind, whole, tmp_path):
    try_kills(seed, kind, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 23))
def test_killed_anywhere_more_often(seed, whole, tmp_path):
    try_kills(seed, ("store", "streams")[seed % 2], whole, tmp_path)


@pytest.mark.slow
def test_an_ablation_killed_at_random(tmp_path):
    """The whole process group is killed (`kill -9`) at two random moments, and the same command goes on."""
    tree = small_tree(steps=6, save_every=2)
    assert go(small_tree(steps=2), tmp_path / "teacher") == 0
    weights = str(tmp_path / "teacher" / "checkpoints" / "student.safetensors")
    tree["teacher"] = {**tree["model"], "weights": weights}
    tree["distill"] = {"pixel_wise": {"weight": 1}}
    path = write_recipe(tmp_path / "recipe.yaml", tree)
    draw, words = (
        random.Random(5),
        [sys.executable, "-m", "densekd", "ablate", str(path), "--device", "cpu"],
    )

    def begin(name: str) -> subprocess.Popen:
        command = [*words, "--out", str(tmp_path / name), "--name", "a"]
        return subprocess.Popen(
            command, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL
        )

    begun = time.monotonic()
    assert begin("whole").wait(400) == 0
    took = time.monotonic() - begun
    for _ in range(2):
        process = begin("killed")
        time.sleep(draw.uniform(0.2, 0.9) * took)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert begin("killed").wait(400) == 0
    found, expected = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).rglob("student.safetensors")
        }
        for n in ("killed", "whole")
    )
    assert len(expected) == 2
    assert found == expected
