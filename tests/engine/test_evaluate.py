"""Scores against cityscapesscripts and torchmetrics, in every view, over uneven ranks."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from densekd.data import Cityscapes, EvalLoader, to_label_ids
from densekd.engine.evaluate import evaluate
from densekd.ops.tiling import Views, predict_dense
from densekd.scenes import write_cityscapes
from densekd.tasks import Segmentation
from densekd.types import DenseOutput

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 48, 80
IMAGES = 5


class Colours(torch.nn.Module):
    """A stand-in for a tapped network: each class likes a colour; right often enough to have a score."""

    def __init__(self, classes: int = 19, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.layer = torch.nn.Conv2d(3, classes, 3, padding=1)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))

    def forward(self, images):
        assert not self.training
        return DenseOutput(self.layer(images - 0.5))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_cityscapes(
        root, splits={"val": IMAGES}, height=HEIGHT, width=WIDTH, depth=False, boxes=False
    )
    return root


@pytest.fixture
def reader(root):
    return Cityscapes(root, "val")


def make_task(reader):
    return Segmentation(reader.classes, reader.palette, ignore_index=reader.ignore_index)


def predictions(reader, task, views=None):
    """(class map, target) of every image, made one by one without the engine's loop."""
    network = Colours().eval()
    with torch.no_grad():
        for i in range(len(reader)):
            sample = reader.read(i)
            images = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float() / 255
            scores = predict_dense(
                lambda x: network(x).prediction, images, sample.target.shape, views
            )
            yield task.decode(scores)[0], torch.from_numpy(sample.target.astype(np.int64))


VIEWS = {
    "whole": Views(),
    "flip": Views(flip=True),
    "scales": Views(scales=(0.5, 1.0, 1.5), flip=True),
    "window": Views(window=(32, 32), overlap=0.25),
}


def cityscapes_scores(root, reader, task, folder, views, monkeypatch):
    """What the official script makes of the same predictions."""
    monkeypatch.setenv("CITYSCAPES_DATASET", str(root))
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(folder))
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    # NumPy 2.4 dropped the older name that the script uses.
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    guesses, truths = [], []
    for i, (prediction, _) in enumerate(predictions(reader, task, views)):
        guesses.append(str(folder / f"{i}.png"))
        Image.fromarray(to_label_ids(prediction.numpy())).save(guesses[-1])
        truths.append(str(reader.paths(i)[1]))
    args = official.args
    monkeypatch.setattr(args, "quiet", True)
    monkeypatch.setattr(args, "JSONOutput", False)
    monkeypatch.setattr(args, "evalInstLevelScore", False)
    monkeypatch.setattr(args, "evalPixelAccuracy", True)
    monkeypatch.setattr(args, "evalLabels", [])
    return official.evaluateImgLists(guesses, truths, args)


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_scores_equal_cityscapesscripts(root, reader, tmp_path, monkeypatch, views):
    task = make_task(reader)
    network = Colours()
    ours = evaluate(network, EvalLoader(reader, batch_size=2), task, views=views)
    assert network.training  # left as it was found
    theirs = cityscapes_scores(root, reader, task, tmp_path, views, monkeypatch)
    compared = []
    for name, iou in ours["iou"].items():
        official = theirs["classScores"][name]
        if iou is None:
            assert np.isnan(official)
        else:
            compared.append(official)
            assert iou == pytest.approx(official, abs=1e-6), name
    assert len(compared) > 5
    # The official average leaves out classes in neither truth nor prediction, too.
    assert ours["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    assert 0.01 < ours["miou"] < 0.9


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_scores_equal_torchmetrics(reader, views):
    task = make_task(reader)
    ours = evaluate(Colours(), EvalLoader(reader), task, views=views)
    per_class = MulticlassJaccardIndex(19, average="none", ignore_index=255)
    pairs = list(predictions(reader, task, views))
    for prediction, target in pairs:
        per_class.update(prediction[None].long(), target[None])
    theirs = per_class.compute()
    for (name, iou), other in zip(ours["iou"].items(), theirs.tolist(), strict=True):
        assert (0.0 if iou is None else iou) == pytest.approx(other, abs=1e-6), name
    occurring = [i for i, iou in enumerate(ours["iou"].values()) if iou is not None]
    assert ours["miou"] == pytest.approx(float(theirs[occurring].mean()), abs=1e-6)
    right = sum(int(((p == t) & (t != 255)).sum()) for p, t in pairs)
    total = sum(int((t != 255).sum()) for _, t in pairs)
    assert ours["pixel_accuracy"] == pytest.approx(right / total, abs=1e-12)
    assert ours["pixels"] == total


def test_views_differ_and_batches_do_not(reader):
    task = make_task(reader)
    scores = {
        name: evaluate(Colours(), EvalLoader(reader), task, views=views)["miou"]
        for name, views in VIEWS.items()
    }
    assert len(set(scores.values())) == len(scores)
    whole = evaluate(Colours(), EvalLoader(reader), task)
    for batch in (2, 3, 8):
        assert evaluate(Colours(), EvalLoader(reader, batch_size=batch), task) == whole


def test_a_window_that_covers_the_image_is_the_whole_image(reader):
    task = make_task(reader)
    covering = evaluate(Colours(), EvalLoader(reader), task, views=Views(window=(HEIGHT, WIDTH)))
    assert covering == evaluate(Colours(), EvalLoader(reader), task)


def test_images_of_different_size_in_one_batch_count_no_padding(root, tmp_path):
    write_cityscapes(tmp_path / "small", splits={"val": 2}, height=32, width=64, seed=9)
    readers = [Cityscapes(root, "val"), Cityscapes(tmp_path / "small", "val")]
    both = readers[0]
    both._pairs._images += readers[1]._pairs._images
    both._pairs._partners += readers[1]._pairs._partners
    task = make_task(both)
    total = sum(int((both.read(i).target != 255).sum()) for i in range(len(both)))
    assert evaluate(Colours(), EvalLoader(both, batch_size=7), task)["pixels"] == total


def test_progress_and_a_network_in_eval_mode_stays_so(reader):
    network, seen = Colours().eval(), []
    evaluate(network, EvalLoader(reader, batch_size=2), make_task(reader), progress=seen.append)
    assert seen == [2, 2, 1]
    assert not network.training


def test_unlabelled_images_count_nothing(root, reader):
    task = make_task(reader)
    before = evaluate(Colours(), EvalLoader(reader, limit=3), task)
    bare = Cityscapes(root, "val", allow_unlabelled=True)
    bare._pairs._partners[3:] = [None] * (IMAGES - 3)
    assert evaluate(Colours(), EvalLoader(bare), task) == before


RANK = """
    import json, sys
    from densekd.data import Cityscapes, EvalLoader
    from densekd.engine.evaluate import evaluate
    from densekd.engine.launch import started
    from tests.engine.test_evaluate import Colours, make_task

    with started("cpu") as process:
        reader = Cityscapes(sys.argv[1], "val")
        loader = EvalLoader(reader, rank=process.rank, world_size=process.world_size)
        task = make_task(reader)
        metrics = []
        make = task.metric
        task.metric = lambda **given: metrics.append(make(**given)) or metrics[0]
        names = []
        def watched():
            for batch in loader:
                names.extend(batch.names)
                yield batch
        scores = evaluate(Colours(), watched(), task)
        result = {"names": names, "scores": scores, "counts": metrics[0].confusion.counts.tolist()}
        open(f"{sys.argv[2]}/rank{process.rank}.json", "w").write(json.dumps(result))
"""


@pytest.mark.slow  # two processes with torch in each
@pytest.mark.dist
def test_uneven_ranks_count_every_image_once(root, reader, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
         str(script), str(root), str(tmp_path)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        timeout=240,
        capture_output=True,
    )  # fmt: skip
    ranks = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in (0, 1)]
    task = make_task(reader)
    metrics = []
    make = task.metric
    task.metric = lambda **given: metrics.append(make(**given)) or metrics[0]
    alone = evaluate(Colours(), EvalLoader(reader), task)
    assert [len(rank["names"]) for rank in ranks] == [3, 2]
    assert sorted(ranks[0]["names"] + ranks[1]["names"]) == [reader.name(i) for i in range(IMAGES)]
    for rank in ranks:
        assert rank["scores"] == alone
        assert rank["counts"] == metrics[0].confusion.counts.tolist()
