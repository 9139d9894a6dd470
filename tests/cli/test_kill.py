"""A real process killed, or asked to stop, and started again ends where an uninterrupted one does, bit for bit."""

import json
import signal
import subprocess
import sys
import time

import pytest

from densekd.engine.folder import RunFolder
from densekd.engine.log import read_metrics
from tests.cli.helpers import ENVIRONMENT, write_recipe
from tests.cli.helpers import densekd as command

STEPS = 40
SAVE_EVERY = 7  # not where the signals fall
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    tree = {
        "model": {"name": "espnet_c", "options": {"p": 1, "q": 1}},
        "teacher": {"name": "espnet", "options": {"p": 1, "q": 1}, "allow_untrained": True},
        "data": {
            "dataset": "scenes",
            "options": {"height": 32, "width": 64},
            "train_options": {"length": 6},
            "val_options": {"length": 2},
            "batch_size": 2,
            "workers": 1,
            "crop": [32, 64],
            "scale": [0.8, 1.2],
            "color_jitter": 0.2,
        },
        "distill": {
            "pixel_wise": {"weight": 10},
            "pair_wise": {"weight": 10},
            "holistic": {"weight": 0.1, "channels": 8},
        },
        "optim": {"name": "adam", "lr": 1e-3, "warmup_steps": 5},
        "train": {"steps": STEPS, "log_every": 1, "save_every": SAVE_EVERY},
    }
    return write_recipe(tmp_path_factory.mktemp("kill") / "recipe.yaml", tree)


@pytest.fixture(scope="module")
def words(recipe):
    return ["distill", str(recipe), "--out", str(recipe.parent / "runs"), "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(recipe, words):
    """The uninterrupted run."""
    result = command(*words, "--name", "whole")
    assert result.returncode == 0, result.stderr
    return RunFolder(recipe.parent / "runs" / "whole")


def values(folder):
    """Every logged number but those of speed and memory."""
    left_out = {"images_per_s", "memory_gb"}
    return [
        {k: v for k, v in row.items() if k not in left_out} for row in read_metrics(folder.metrics)
    ]


def interrupt(words, folder, number, after, saved):
    """Start the command, or go on from step `saved`, and send the signal once `after` steps are logged."""
    resume = ["--resume"] if folder.path.exists() else []
    process = subprocess.Popen(
        [sys.executable, "-m", "densekd", *words, "--name", folder.path.name, *resume],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < end:
            rows = read_metrics(folder.metrics)
            if rows and rows[-1]["step"] >= after:
                process.send_signal(number)
                break
            time.sleep(0.002)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert not folder.result.exists(), f"finished before the signal came:\n{output}"
    if resume:
        where = f"resumed at step {saved}" if saved else "starting from the beginning"
        assert where in output
    return process.returncode, output


@pytest.mark.parametrize(
    "history",
    [
        [(signal.SIGKILL, STEPS // 2)],
        # before the first save, asked to stop twice, and killed once more
        [(signal.SIGKILL, 2), (signal.SIGTERM, 10), (signal.SIGKILL, 25), (signal.SIGINT, 32)],
    ],
    ids=["killed", "everything"],
)
def test_interrupted_and_resumed_is_the_uninterrupted_run(whole, words, history):
    folder = RunFolder(whole.path.with_name(f"interrupted{len(history)}"))
    saved = 0
    for number, after in history:
        status, output = interrupt(words, folder, number, after, saved)
        assert "Traceback" not in output
        assert not folder.student.exists()
        reached = read_metrics(folder.metrics)[-1]["step"]
        assert reached >= after
        if number == signal.SIGKILL:
            assert status == -signal.SIGKILL, output
            saved = max(saved, reached // SAVE_EVERY * SAVE_EVERY)
        else:
            # it saved the step it was at, not only the last multiple of save_every
            assert status == 128 + number, output
            assert f"stopped at step {reached}; go on with the same command and --resume" in output
            saved = reached
    again = command(*words, "--name", folder.path.name, "--resume")
    assert again.returncode == 0, again.stderr
    assert f"resumed at step {saved}" in again.stdout
    assert folder.student.read_bytes() == whole.student.read_bytes()
    assert values(folder) == values(whole)
    scores = [json.loads(f.result.read_text())["scores"] for f in (folder, whole)]
    assert scores[0] == scores[1]
    assert len(folder.command.read_text().splitlines()) == len(history) + 1
