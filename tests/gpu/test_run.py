"""A run on CUDA end to end: it trains, resumes, and its weights score the same on the CPU."""

import json

import pytest
import torch

from densekd.config.load import make_config
from densekd.data import SceneSet
from densekd.data.loader import TrainLoader
from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from densekd.workflows.evaluate import evaluate_weights
from densekd.workflows.run import run

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def keep_settings():
    """A run on CUDA sets precision and cuDNN for the whole process."""
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark


def go(tree, folder, **options):
    config = make_config(tree, "test")
    return run(config, distil=True, folder=folder, command="test", device="cuda", **options)


def test_twenty_steps_and_the_cpus_score(tiny_tree, tmp_path):
    tiny_tree["train"].update(steps=20, save_every=10, log_every=5, amp="bf16", channels_last=True)
    tiny_tree["data"]["workers"] = 2
    tiny_tree["optim"] = {"name": "adam", "lr": 5e-3}
    assert go(tiny_tree, tmp_path / "r") == 0
    folder = RunFolder(tmp_path / "r")
    rows = [row for row in read_metrics(folder.metrics) if "loss" in row]
    assert rows[-1]["task/ce"] < rows[0]["task/ce"]
    assert rows[-1]["memory_gb"] > 0
    assert json.loads(folder.result.read_text())["step"] == 20
    tiny_tree["train"]["amp"] = "none"
    config = make_config(tiny_tree, "test")
    scores = [
        evaluate_weights(config, folder.student, "val", device=device, quiet=True)["miou"]
        for device in ("cpu", "cuda")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_a_resumed_run_ends_where_the_whole_one_does(tiny_tree, tmp_path, monkeypatch):
    """Kernels that add in any order make it near, not bit for bit."""
    import densekd.engine.trainer as trainer

    tiny_tree["train"].update(steps=6, save_every=1)
    assert go(tiny_tree, tmp_path / "whole") == 0
    original = trainer.Training.save

    def die(self):
        original(self)
        if self.done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Training, "save", die)
        with pytest.raises(KeyboardInterrupt):
            go(tiny_tree, tmp_path / "parts")
    assert go(tiny_tree, tmp_path / "parts", resume=True) == 0
    a, b = (
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("whole", "parts")
    )
    assert [row["step"] for row in b] == [1, 2, 3, 4, 5, 6]
    assert b[-1]["loss"] == pytest.approx(a[-1]["loss"], rel=0.05)


def test_the_training_loader_pins_its_batches(cuda):
    loader = TrainLoader(SceneSet(length=4, height=32, width=64), batch_size=2, workers=1)
    stream = iter(loader)
    batch = next(stream)
    assert batch.images.is_pinned()
    assert batch.targets.is_pinned()
    moved = batch.to(cuda)
    torch.testing.assert_close(moved.images.cpu(), batch.images.float() / 255)
    stream.close()
