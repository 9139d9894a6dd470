"""Files of data sets and of run folders changed by chance: each is read, or refused with one message."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from densekd.build.provenance import about_weights
from densekd.data import CamVid, Coco, CocoMasks, DepthFolder, NYUv2, VOCBoxes, check_all
from densekd.data.sets.nyuv2 import MAT
from densekd.engine.folder import RunFolder
from densekd.errors import UserError
from densekd.report.card import model_card
from densekd.workflows.report_runs import collect
from densekd.workflows.share import origin_of
from densekd.workflows.watch import read_state
from tests.data.conftest import make_image, make_labels
from tests.data.sets import test_coco, test_depth_folder, test_voc_boxes
from tests.reliability.runs import go, small_tree
from tests.reliability.test_fuzz import changed, mutated


def camvid(root: Path) -> None:
    for i in range(3):
        make_image(root / f"train/{i}.png", seed=i)
        make_labels(root / f"trainannot/{i}.png", np.resize(np.arange(12), (12, 16)))
    lines = [f"train/{i}.png trainannot/{i}.png" for i in range(3)]
    (root / "train.txt").write_text("\n".join(lines))


def coco(root: Path) -> None:
    square = [[1, 1, 6, 1, 6, 6, 1, 6]]
    runs = {"size": [12, 16], "counts": [20, 5, 167]}
    notes = [
        test_coco.note(1, 9, 44, segmentation=square),
        test_coco.note(2, 7, 1, segmentation=square, area=12.5),
        test_coco.note(3, 4, 3, segmentation=runs, iscrowd=1),
    ]
    test_coco.build(root, notes)


def nyu(root: Path) -> None:
    h5py = pytest.importorskip("h5py")
    draw = np.random.default_rng(0)
    with h5py.File(root / MAT, "w") as file:
        file["images"] = draw.integers(0, 256, (3, 3, 8, 6), dtype=np.uint8)
        file["depths"] = draw.uniform(1, 5, (3, 8, 6)).astype(np.float32)
        file["rawDepths"] = draw.uniform(1, 5, (3, 8, 6)).astype(np.float32)


SETS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "CamVid": (camvid, lambda root: CamVid(root, verify_files=False)),
    "Coco": (coco, lambda root: Coco(root, "val2017", verify_files=False)),
    "CocoMasks": (coco, lambda root: CocoMasks(root, "val2017", verify_files=False)),
    "VOCBoxes": (
        lambda root: test_voc_boxes.build(root, objects=test_voc_boxes.entry(1, 1, 5, 5)),
        lambda root: VOCBoxes(root, "train", verify_files=False),
    ),
    "NYUv2": (nyu, lambda root: NYUv2(root, split=None)),
    "DepthFolder": (test_depth_folder.build, lambda root: DepthFolder(root, unit="mm")),
}


def other(draw: random.Random, path: Path, data: bytes) -> bytes:
    """A file with broken bytes or, of JSON, with other values too."""
    if path.suffix == ".json" and draw.random() < 0.7:
        tree = json.loads(data)
        part = draw.choice(list(tree))
        place = draw.randrange(len(tree[part]))
        tree[part][place], _ = changed(draw, tree[part][place])
        return json.dumps(tree).encode()
    return mutated(draw, data)


def try_data(count: int, seed: int, folder: Path) -> None:
    draw, bad = random.Random(seed), 0
    trees: dict[str, list[Path]] = {}
    for name, (make, _) in SETS.items():
        (folder / name).mkdir()
        make(folder / name)
        trees[name] = sorted(p for p in (folder / name).rglob("*") if p.is_file())
    for number in range(count):
        name = list(SETS)[number % len(SETS)]
        path = draw.choice(trees[name])
        if draw.random() < 0.5:  # the few files that say what the others are
            path = max(trees[name], key=lambda p: p.suffix in (".json", ".txt", ".xml", ".mat"))
        data = path.read_bytes()
        path.write_bytes(other(draw, path, data))
        try:
            report = check_all(SETS[name][1](folder / name))
            bad += bool(report.bad)
        except UserError:
            bad += 1
        except Exception as error:
            kept = path.read_bytes()
            pytest.fail(f"{name}, {path.name}: {type(error).__name__}: {error}\n{kept[:3000]!r}")
        finally:
            path.write_bytes(data)
    assert count / 10 < bad


@pytest.mark.filterwarnings("ignore")
def test_data_sets_are_read_or_refused(tmp_path):
    pytest.importorskip("faster_coco_eval")
    try_data(60, 7, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_data_sets_are_read_or_refused(tmp_path):
    pytest.importorskip("faster_coco_eval")
    try_data(300, 8, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished distilled run."""
    folder = tmp_path_factory.mktemp("finished") / "r"
    tree = small_tree(steps=2)
    tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "allow_untrained": True}
    tree["distill"] = {"pixel_wise": {"weight": 1}}
    assert go(tree, folder, distil=True) == 0
    return folder


def altered(draw: random.Random, path: Path) -> str:
    """The text of a run's file with other values in it."""
    text = path.read_text()
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        place = draw.randrange(len(rows))
        rows[place], _ = changed(draw, rows[place])
        return "".join(json.dumps(row) + "\n" for row in rows)
    tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    tree, _ = changed(draw, tree)
    return json.dumps(tree) if path.suffix == ".json" else yaml.safe_dump(tree)


def try_run_folders(count: int, seed: int, finished: Path, folder: Path) -> None:
    draw = random.Random(seed)
    shutil.copytree(finished, folder / "r")
    run = RunFolder(folder / "r")
    about = about_weights(str(run.student))
    readers: dict[str, Callable[[], object]] = {
        "report": lambda: collect([run.path]),
        "watch": lambda: read_state(run.path),
        "card": lambda: model_card(about, origin_of(run.student), name="a/b", license=None),
    }
    ended = {"read": 0, "refused": 0}
    for number in range(count):
        path = draw.choice([run.config, run.result, run.metrics, run.environment])
        text = path.read_text()
        if number % 4:
            path.write_text(altered(draw, path))
        else:
            path.write_bytes(mutated(draw, text.encode()))
        for name, read in readers.items():
            try:
                read()
                ended["read"] += 1
            except UserError:
                ended["refused"] += 1
            except Exception as error:
                pytest.fail(
                    f"{name}, {path.name}: {type(error).__name__}: {error}\n{path.read_bytes()!r}"
                )
        path.write_text(text)
    assert all(ended.values()), ended


def test_run_folders_are_read_or_refused(finished, tmp_path):
    try_run_folders(40, 9, finished, tmp_path)


@pytest.mark.slow
def test_many_run_folders_are_read_or_refused(finished, tmp_path):
    try_run_folders(300, 10, finished, tmp_path)


def test_a_damaged_neighbour_stops_no_card(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs/r")
    for name, content in (("a", b"["), ("b", b"[" * 5000), ("c", b'{"config": 3, "scores": 1}')):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "result.json").write_bytes(content)
    assert origin_of(tmp_path / "runs/r/checkpoints/student.safetensors").alone is None
