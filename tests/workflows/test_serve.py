"""`densekd serve` with real networks of the three tasks, an exported file, and its end by Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import densekd
from densekd.cli.main import main
from densekd.errors import UserError
from densekd.workflows.open_model import open_model
from densekd.workflows.serve import Models, in_turns, serve
from tests.workflows.test_functions import TASKS


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return pixels, file.getvalue()


@pytest.mark.parametrize("task", TASKS)
def test_the_page_gets_what_predict_gives(runs, photo, task):
    pixels, content = photo
    model = densekd.load(runs / task)
    models = Models([model], ["student"])
    models.warm_up()
    found = models.answer(content, "a.png", 1024)
    json.dumps(found, allow_nan=False)
    (answer,) = found["answers"]
    assert answer["milliseconds"] > 0
    expected = model.predict(pixels)
    if task == "segmentation":
        shares = {model.classes[i]: (expected == i).mean() for i in np.unique(expected)}
        named = {e["name"]: e["value"] for e in answer["legend"]["entries"]}
        assert named == {k: f"{100 * v:.1f} %" for k, v in shares.items() if v >= 5e-4}
    if task == "detection":
        assert answer["picture"]["svg"].startswith("<svg")
    if task == "depth":
        assert f"median {np.median(expected):.2g} m" in answer["legend"]["text"]
    (described,) = models.described()
    assert task in described["facts"]
    assert [name for name, _ in described["classes"]] == model.classes


def test_times_are_medians_by_turns_without_the_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("densekd.workflows.serve.time.perf_counter", lambda: clock[0])
    order = []

    class Timed:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, iter(seconds)

        def predict(self, image):
            order.append(self.name)
            clock[0] += next(self.seconds)
            return self.name

    pairs = [(Timed("a", [0.4, 0.1, 0.3, 0.2]), None), (Timed("b", [0.6, 0.2, 0.1, 0.3]), None)]
    assert in_turns(pairs, 4) == [("a", pytest.approx(0.2)), ("b", pytest.approx(0.2))]
    assert order == ["a", "b"] * 4
    slow = [(Timed("a", [3.0]), None)]
    assert in_turns(slow, 4) == [("a", pytest.approx(3.0))]


def test_a_student_beside_its_exported_file(runs, photo, tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "student.onnx"
    assert main(["export", str(runs / "segmentation"), "--out", str(path)]) == 0
    models = Models([densekd.load(runs / "segmentation"), open_model(path)], ["run", "file"])
    found = models.answer(photo[1], "a.png", 1024)
    assert found["remarks"] == ["They give the same class at 100.0 % of the pixels."]
    assert "ONNX Runtime" in models.described()[1]["facts"]


def test_ctrl_c_ends_it(runs, photo):
    pytest.importorskip("uvicorn")
    said = []

    def started(address):
        def use():
            connection = HTTPConnection(urlsplit(address).netloc, timeout=20)
            connection.request("POST", "/answer?side=64", photo[1])
            said.append(connection.getresponse().status)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=use).start()

    before = signal.getsignal(signal.SIGINT)
    model = densekd.load(runs / "segmentation")
    serve([model], ["student"], port=0, most_side=64, started=started)
    assert said == [200]
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_wrong_is_said_before_anything_is_served(runs, capsys, monkeypatch):
    model = densekd.load(runs / "segmentation")
    with pytest.raises(UserError, match="--max-side 5: expected at least 32"):
        serve([model], ["student"], port=0, most_side=5, started=print)
    assert main(["serve", "nowhere/run"]) == 2
    assert main(["serve", str(runs / "depth"), "--names", "a", "b"]) == 2
    monkeypatch.setitem(__import__("sys").modules, "starlette", None)
    assert main(["serve", str(runs / "depth")]) == 2
    error = capsys.readouterr().err
    assert "no file and no folder here" in error
    assert "--names: 2 given for 1 models" in error
    assert "pip install 'densekd[serve]'" in error
