"""Trackers: what they are told, once each; and that one which fails, hangs or is slow is no harm to the run."""

from __future__ import annotations

import json
import threading
import time

import pytest

from densekd.engine import log as log_module
from densekd.engine.log import Log, read_metrics
from densekd.engine.trackers import About, Sender, numbers
from densekd.engine.trackers.mlflow import MLflow
from densekd.engine.trackers.tensorboard import TensorBoard
from densekd.engine.trackers.trackio import Trackio
from densekd.engine.trackers.wandb import WandB

CONFIG = {"optim": {"lr": 0.01}, "train": {"steps": 4}, "model": {"weights": None}}


class Fake:
    """Keeps what it is told."""

    overwrites = False

    def __init__(self, about: About) -> None:
        self.about, self.id = about, about.id or "first"
        self.rows, self.ends = [], []

    def log(self, step, values):
        self.rows.append((step, dict(values)))

    def finish(self, final):
        self.ends.append(final)


def opened(folder, make, *, start=0, **more) -> Log:
    """A log as a run opens it."""
    metrics = folder / "metrics.jsonl"
    about = About("run", folder, CONFIG, start, None)
    sender = Sender("fake", make, about, read_metrics(metrics))
    return Log(metrics, active=True, total=9, start=start, trackers=[sender], **more)


def through(log: Log, first: int, last: int, final=None) -> None:
    """Steps `first` to `last`, scores at even ones, and the end."""
    for step in range(first, last + 1):
        log.steps(step, {"loss": 1 / step, "task/ce": 0.5}, 0.1)
        if step % 2 == 0:
            log.scores(step, {"miou": step / 10, "iou": {"a sky": 0.25}})
    log.final = final
    log.close()


def test_a_tracker_is_told_the_rows_of_metrics_jsonl(tmp_path):
    made = []
    through(opened(tmp_path, lambda a: made.append(Fake(a)) or made[0]), 1, 2, {"final/miou": 0.2})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [step for step, _ in made[0].rows] == [1, 2, 2] == [row["step"] for row in rows]
    assert made[0].rows[0][1] == {k: v for k, v in rows[0].items() if k != "step"}
    assert made[0].rows[2][1] == {"val/miou": 0.2, "val/iou/a sky": 0.25}
    assert made[0].ends == [{"final/miou": 0.2}]
    assert made[0].about.config == CONFIG


def test_a_run_that_goes_on_opens_the_same_run_and_tells_nothing_twice(tmp_path):
    made = []

    def make(about):
        made.append(Fake(about))
        return made[-1]

    through(opened(tmp_path, make), 1, 4)
    assert made[0].ends == [None]  # stopped
    through(opened(tmp_path, make, start=3), 4, 6, {})
    assert (made[0].about.id, made[1].about.id) == (None, "first")
    assert [step for step, _ in made[1].rows] == [5, 6, 6]


def test_what_a_tracker_lacks_is_told_when_the_run_goes_on(tmp_path):
    def broken(about):
        raise ConnectionError("no network")

    made = []
    through(opened(tmp_path, broken), 1, 3)
    through(opened(tmp_path, lambda a: made.append(Fake(a)) or made[0], start=3), 4, 4)
    assert [step for step, _ in made[0].rows] == [1, 2, 2, 3, 4, 4]


def test_a_tracker_that_shows_the_newer_row_is_told_again(tmp_path):
    class Forgetful(Fake):
        overwrites = True

    made = []

    def make(about):
        made.append(Forgetful(about))
        return made[-1]

    through(opened(tmp_path, make), 1, 3)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(rows[:2]))  # cut to the checkpoint of step 2
    through(opened(tmp_path, make, start=2), 3, 4)
    assert [step for step, _ in made[1].rows] == [3, 4, 4]


@pytest.mark.parametrize("where", ["open", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path, capsys, where):
    class Broken(Fake):
        def __init__(self, about):
            super().__init__(about)
            if where == "open":
                raise SystemExit("not logged in")

        def log(self, step, values):
            if where == "log":
                raise RuntimeError("the server\nis gone")

        def finish(self, final):
            raise OSError("no space")

    through(opened(tmp_path, Broken, quiet=True), 1, 6)
    said = capsys.readouterr().out
    assert said.count("warning: the tracker fake is left out (") == 1
    reason = {"open": "SystemExit: not logged in", "log": "RuntimeError: the server)"}
    assert reason.get(where, "OSError: no space") in said
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 9


def test_a_tracker_that_hangs_costs_the_run_nothing_but_a_stated_time(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(log_module, "PATIENCE", 0.2)
    release = threading.Event()

    class Slow(Fake):
        def log(self, step, values):
            release.wait(20)

    log = opened(tmp_path, Slow)
    begin = time.perf_counter()
    through(log, 1, 8)
    assert time.perf_counter() - begin < 5
    release.set()
    assert (
        "fake is left out (it has not taken everything 0 s after the end)"
        in capsys.readouterr().out
    )


def test_a_tracker_too_far_behind_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("densekd.engine.trackers.sender.MOST", 3)
    release = threading.Event()
    log = opened(tmp_path, lambda about: release.wait(20))
    through(log, 1, 6)
    release.set()
    assert "it is 3 rows behind" in capsys.readouterr().out


def test_a_damaged_note_starts_anew(tmp_path):
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "fake.json").write_text('{"id": 3, "step": "x"}')
    made = []
    through(opened(tmp_path, lambda a: made.append(Fake(a)) or made[0]), 1, 1)
    assert made[0].about.id is None
    note = json.loads((tmp_path / "trackers" / "fake.json").read_text())
    assert note == {"id": "first", "step": 1, "scored": -1}


def test_numbers_by_their_path():
    nested = {"a": 1, "b": {"c": 0.5, "name": "x", "d": {"e": True, "f": 2}}, "list": [1]}
    assert numbers(nested, "final/") == {"final/a": 1, "final/b/c": 0.5, "final/b/d/f": 2}


def resumed(folder, make) -> list[dict]:
    """A run stopped at step 3 that goes on from step 2 to 4; its rows."""
    through(opened(folder, make), 1, 3)
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:3]))
    through(opened(folder, make, start=2), 3, 4, {"final/miou": 0.4})
    return read_metrics(folder / "metrics.jsonl")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def make(about):
        # Files are read in the order of their names, which have seconds: the next is to come later.
        for path in (tmp_path / "tensorboard").glob("*tfevents*"):
            path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))
        return TensorBoard(about)

    rows = resumed(tmp_path, make)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    found = {e.step: e.value for e in events.Scalars("loss")}
    assert found == pytest.approx(losses)
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Scalars("val/iou/a sky")] == [2, 4]
    assert [(e.step, e.value) for e in events.Scalars("final/miou")] == [(4, pytest.approx(0.4))]
    (config,) = events.Tensors("config/text_summary")
    assert b"lr: 0.01" in config.tensor_proto.string_val[0]


def test_mlflow(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "an experiment")
    rows = resumed(tmp_path, MLflow)
    client = tracking.MlflowClient()
    experiment = client.get_experiment_by_name("an experiment").experiment_id
    (run,) = client.search_runs([experiment])
    told = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "loss")}
    assert told == {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 4
    assert len(client.get_metric_history(run.info.run_id, "val/iou/a sky")) == 2
    assert run.data.metrics["final/miou"] == 0.4
    assert run.data.params["optim.lr"] == "0.01"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    rows = resumed(tmp_path, Trackio)
    name = json.loads((tmp_path / "trackers" / "fake.json").read_text())["id"]
    told = SQLiteStorage.get_logs("densekd", name)
    assert [(row["step"], row["loss"]) for row in told if row.get("loss") is not None] == [
        (row["step"], row["loss"]) for row in rows if "loss" in row
    ]
    assert [row["final/miou"] for row in told if "final/miou" in row] == [0.4]
    assert SQLiteStorage.get_run_config("densekd", name)["optim"]["lr"] == 0.01


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    resumed(tmp_path, WandB)
    name = json.loads((tmp_path / "trackers" / "fake.json").read_text())["id"]
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert {folder.name.rpartition("-")[2] for folder in folders} == {name}
    content = b"".join(f.read_bytes() for folder in folders for f in folder.glob("*.wandb"))
    for text in (b"task/ce", b"final/miou", b"optim"):
        assert text in content
