"""Saved folders with a card, and the hub: a small server on this machine stands in for it."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import densekd
from densekd.cli.main import main
from densekd.errors import UserError, WeightsError
from densekd.report.card import Origin, model_card
from densekd.types import InputSpec
from densekd.workflows.open_model import model_titles, open_model, split_path
from densekd.workflows.share import looks_like_hub_id, save_folder

SETTINGS = {"train.steps": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher, a student alone and a distilled one, side by side."""
    out = tmp_path_factory.mktemp("runs")
    data = {
        "dataset": "scenes",
        "options": {"height": 32, "width": 64},
        "train_options": {"length": 2},
        "val_options": {"length": 2},
        "batch_size": 2,
        "workers": 0,
        "crop": [32, 64],
    }
    network = {"name": "espnet_c", "options": {"p": 1, "q": 1}}
    given = {"data": data, "steps": 1, "out": out, "device": "cpu", "quiet": True}
    teacher = densekd.train(
        model={"name": "espnet", "options": {"p": 1, "q": 1}}, name="teacher", **given
    )
    alone = densekd.train(model=network, name="alone", **given)
    student = densekd.distill(student=network, teacher=teacher.folder, name="student", **given)
    return {"teacher": teacher, "alone": alone, "student": student}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_a_saved_folder_loads_alone_and_answers_the_same(runs, image, tmp_path):
    model = runs["student"].student
    folder = model.save_pretrained(tmp_path / "shared", license="apache-2.0")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = densekd.LoadedModel.from_pretrained(folder)
    assert np.array_equal(again.predict(image), model.predict(image))
    assert (again.classes, again.palette, again.input_spec) == (
        model.classes,
        model.palette,
        model.input_spec,
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["library_name"] == "densekd"
    assert config["model"] == {"name": "espnet_c", "options": {"p": 1, "q": 1}, "in_channels": 3}
    assert config["id2label"]["0"] == model.classes[0]
    assert config["input"]["mean"] == list(model.input_spec.mean)
    # It teaches and is saved again like any other.
    assert again.save_pretrained(tmp_path / "twice").joinpath("README.md").is_file()


def test_the_card_tells_of_the_run(runs, tmp_path):
    runs["student"].student.save_pretrained(tmp_path / "shared", license="apache-2.0")
    text = (tmp_path / "shared" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "densekd"
    assert head["license"] == "apache-2.0"
    assert head["pipeline_tag"] == "image-segmentation"
    assert "# espnet_c distilled from espnet" in text
    assert 'densekd.load("shared")' in text
    for name in ("teacher", "alone", "student"):  # in the order of the table
        assert f"{100 * runs[name].scores['miou']:.2f}" in text
    table = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert table[:5] == ["network", "---", "teacher", "student alone", "**this network**"]
    assert "pixel_wise (weight 10), pair_wise (weight 10)" in text
    assert "`scenes`" in text
    assert "1 steps of 2 images" in text
    for section in ("Use", "Scores", "How it was made", "Input and classes", "Limits", "Licence"):
        assert f"## {section}" in text
    assert "| road | " in text


def test_a_card_says_what_is_not_known(runs, tmp_path):
    alone = runs["alone"].student
    text = (alone.save_pretrained(tmp_path / "a") / "README.md").read_text()
    assert "distilled" not in text
    assert "No licence is given" in text
    assert "license" not in yaml.safe_load(text.split("---")[1])
    best = densekd.load(runs["alone"].folder, best=True)
    text = (best.save_pretrained(tmp_path / "best") / "README.md").read_text()
    assert f"{100 * runs['alone'].scores['miou']:.2f}" in text  # of one evaluation
    assert "pixel accuracy" not in text  # result.json has the best score alone
    lone = densekd.load(tmp_path / "a")  # without its run
    text = (lone.save_pretrained(tmp_path / "b") / "README.md").read_text()
    assert "No score is known" in text
    assert "does not say how" in text


def test_nothing_is_overwritten_and_a_changed_config_is_noticed(runs, tmp_path):
    model = runs["alone"].student
    folder = model.save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=r"model\.safetensors, config\.json, README\.md"):
        model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["classes"][0] = "street"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="another classes"):
        densekd.load(folder)


def test_a_network_without_a_name_is_given_to_load(runs, tmp_path):
    class Net(torch.nn.Conv2d):
        def __init__(self):
            super().__init__(3, 9, 3, padding=1)

    net = Net()
    run = densekd.train(
        model=net, data=runs["alone"].folder / "config.yaml", steps=1, out=tmp_path, device="cpu", quiet=True
    )  # fmt: skip
    folder = run.student.save_pretrained(tmp_path / "net")
    with pytest.raises(WeightsError, match="network=NETWORK"):
        densekd.load(folder)
    again = densekd.load(folder, network=Net())
    assert torch.equal(again.model.weight, run.student.model.weight)
    assert not torch.equal(again.model.weight, net.weight)  # what was given stayed as it was


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload and a download of small files need."""

    files: ClassVar[dict[str, bytes]] = {}
    created: ClassVar[list[dict]] = []

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def as_json(self, value: object) -> None:
        self.answer(json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/me/net"
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.as_json({"url": address})
        elif "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            kinds = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            self.as_json({"files": kinds})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.as_json({"commitUrl": f"{address}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.as_json({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            content = self.files.get(path.rpartition("/")[2])
            if content is None:
                self.answer(b"", 404, X_Error_Code="EntryNotFound")
            else:
                self.answer(
                    content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit="0" * 40
                )
        elif "/tree/" in path:
            self.as_json(
                [
                    {"type": "file", "path": n, "size": len(c), "oid": "0" * 40}
                    for n, c in self.files.items()
                ]
            )
        elif path.startswith("/api/models/me/net"):
            names = [{"rfilename": name} for name in self.files]
            self.as_json({"id": "me/net", "sha": "0" * 40, "siblings": names, "private": False})
        else:
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub's library talks to a server of this process."""
    constants = pytest.importorskip("huggingface_hub.constants")
    Hub.files, Hub.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )  # fmt: skip
    yield server
    server.shutdown()
    server.server_close()


def test_up_to_the_hub_and_back(runs, hub, image, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = runs["student"].student
    address = model.push_to_hub("me/net", private=True, token="hf_made_up", license="mit")
    assert address.endswith("/me/net")
    assert Hub.created[0]["name"] == "net"
    assert 'densekd.load("me/net")' in Hub.files["README.md"].decode()
    assert set(Hub.files) == {"README.md", "config.json", "model.safetensors"}
    again = densekd.load("me/net")
    assert np.array_equal(again.predict(image), model.predict(image))


def test_commands_take_an_id_on_the_hub(runs, hub, image, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    model = runs["student"].student
    model.push_to_hub("me/net", token="hf_made_up")
    Image.fromarray(image).save("street.png")
    assert main(["predict", "me/net", "street.png", "--out", "answers", "--only", "index"]) == 0
    answer = np.asarray(Image.open("answers/index/street.png"))
    assert np.array_equal(answer, model.predict(image))
    recipe = str(runs["student"].folder / "config.yaml")
    assert main(["evaluate", recipe, "--weights", "me/net", "--output", "s.json", "--quiet"]) == 0
    assert json.loads(Path("s.json").read_text())["miou"] == runs["student"].scores["miou"]
    capsys.readouterr()
    assert main(["latency", "me/net", "--runs", "1", "--size", "32", "64", "--json"]) == 0
    assert "net" in capsys.readouterr().out
    compared = ["me/net", "me/net@main", "--names", "a", "b", "--input", "street.png"]
    assert main(["compare", *compared, "--out", "c.png", "--frames", "1"]) == 0
    assert main(["taps", "me/net", "--size", "32", "64"]) == 0
    assert "b3" in capsys.readouterr().out
    # A folder of that name is meant before the hub.
    runs["alone"].student.save_pretrained("me/net")
    assert open_model("me/net").about == runs["alone"].student.about
    with pytest.raises(WeightsError, match=r"me/other does not exist.*owner/name"):
        open_model("me/other")


def test_what_models_on_the_hub_are_called(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert model_titles(["me/net@v1.0", "a.pth@camvid/espnet", "runs/x"]) == ["net", "a", "x"]
    assert model_titles(["me/net", "you/net@v1"]) == ["me/net", "you/net@v1"]
    for text in ("me/net", "me/net@refs/pr/1"):
        assert split_path(text) == Path(text)
    assert split_path("runs/x.pth@camvid/espnet") == Path("runs/x.pth")


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "net", "street.png", "--out", "a"],
        ["evaluate", "demo/segmentation_student", "--weights", "net"],
        ["latency", "a/b/net"],
    ],
)
def test_neither_here_nor_an_id(words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("street.png")
    assert main(words) == 2
    assert "owner/name" in capsys.readouterr().err


def test_an_unreachable_hub_is_a_users_error(runs, hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"me/nothing: is no file and no folder here, and the hub"):
        densekd.load("me/nothing")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match="the hub cannot be reached"):
        runs["alone"].student.push_to_hub("me/net", token="hf_made_up")
    with pytest.raises(UserError, match="expected owner/name"):
        runs["alone"].student.push_to_hub("net")


def test_what_looks_like_a_file_never_asks_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    ids = {"me/net": True, "me/net@main": True, "runs/net": False, "me/net.safetensors": False,
           "net": False, "a/b/c": False, "../net": False, "./net": False,
           "a/b.onnx": False, "here/x.pth@camvid/espnet": False, "me/net@a/b": True}  # fmt: skip
    assert {text: looks_like_hub_id(Path(text)) for text in ids} == ids
    with pytest.raises(WeightsError, match="no such weights file"):
        densekd.load("runs/net")


def test_an_exported_file_is_not_saved_as_a_network(tmp_path):
    about = {"model": {"name": "espnet"}, "classes": [], "input": InputSpec().as_dict()}
    with pytest.raises(UserError, match="an exported file cannot be saved"):
        save_folder(nn.Identity(), about, tmp_path / "net.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_card_names_several_teachers(tmp_path):
    tree = {
        "teacher": None,
        "teachers": {"a": {"name": "espnet", "options": {}}, "b": {"name": "vnl", "options": {}}},
        "data": {"dataset": "scenes", "train_split": "train", "crop": None, "batch_size": 2},
        "optim": {"name": "sgd", "lr": 0.1},
        "train": {"steps": 1, "accumulate": 1},
        "distill": {"pixel_wise": {"weight": [[0, 0.0], [9, 3.0]]}},
        "seed": 0,
    }
    about = {"model": {"name": "espnet_c"}, "classes": ["a"], "task": "segmentation"}
    card = model_card({**about, "input": InputSpec().as_dict()}, Origin(tree), name="x")
    assert "# espnet_c distilled from espnet and vnl" in card
    assert card.count("- Teacher: `") == 2
