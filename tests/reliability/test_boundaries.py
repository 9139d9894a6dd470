"""Reading weights and recipes, writing a run, reading a run folder: whatever fails there is one message."""

import errno
import json
import os
import resource
import stat
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from densekd.build.provenance import about_weights
from densekd.cli.main import main
from densekd.config.load import load_config
from densekd.data.cache.storage import read_index
from densekd.engine.folder import RunFolder
from densekd.errors import UserError, WeightsError
from densekd.models.weights import load_weights, read_weights, save_weights
from densekd.ops.files import write_text
from densekd.workflows.load import load
from tests.cli.helpers import write_recipe
from tests.reliability.runs import dies_after, go, small_tree


@pytest.fixture
def refused(capsys):
    """Run a command, which must end with status 2 and one message; gives that."""

    def go_wrong(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        said = capsys.readouterr()
        assert said.err.count("densekd: error: ") == 1
        return said.err

    return go_wrong


# Reading weights.

DEEP = "[" * 5000 + "]" * 5000


def looped() -> dict:
    content: dict = {"x": 1}
    content["state_dict"] = content
    return content


STRANGE = {
    "sparse": lambda: {"weight": torch.eye(3).to_sparse()},
    "compressed": lambda: {"weight": torch.eye(3).to_sparse_csr()},
    "meta": lambda: {"weight": torch.empty(3, 3, device="meta")},
    "quantised": lambda: {"weight": torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)},
    "looped": looped,
    "no tensors": lambda: {"a": {"b": 1}},
    "numbers as keys": lambda: {1: torch.ones(2), None: torch.ones(2)},
    "a list": lambda: [torch.ones(3)],
    "huge": lambda: {"weight": torch.zeros(1).expand(10**9, 10**6)},
    "complex": lambda: {"weight": torch.zeros(3, 3, dtype=torch.complex64)},
    "text": lambda: {"weight": "text", "bias": torch.ones(3)},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_tensors(tmp_path, kind):
    path = tmp_path / "strange.pt"
    torch.save(STRANGE[kind](), path)
    with pytest.raises(WeightsError, match=r"strange\.pt"):
        load_weights(nn.Linear(3, 3), path)


DESCRIPTIONS = [
    "no JSON", DEEP, "[]", "3", '"text"', '{"classes": 3}', '{"classes": [1, 2]}', '{"model": []}', '{"input": [1]}',
    '{"input": {"mean": "x"}}', '{"note": {}}', '{"note": 1e999}', '{"task": null}', '{"ignore_index": "x"}',
    '{"version": "' + "9" * 5000 + '"}', '{"ignore_index": ' + "9" * 5000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("text", DESCRIPTIONS, ids=range(len(DESCRIPTIONS)))
def test_strange_descriptions(tmp_path, text):
    path = tmp_path / "strange.safetensors"
    save_file({"weight": torch.ones(2, 2)}, path, metadata={"densekd": text})
    with pytest.raises(WeightsError, match=r"strange\.safetensors"):
        load(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsError, match="is no file"):
        read_weights(tmp_path / "pipe.pth")


def test_a_note_is_shown_and_not_obeyed(tmp_path):
    note = "\x1b[2J\x1b]0;title\x07 cleared\u202e"
    save_weights(
        nn.Linear(2, 2), tmp_path / "n.safetensors", {"densekd": json.dumps({"note": note})}
    )
    shown = about_weights(str(tmp_path / "n.safetensors"))["note"]
    assert shown.isprintable()
    assert shown == "\\x1b[2J\\x1b]0;title\\x07 cleared\\u202e"


def test_names_in_messages_are_shown_and_not_obeyed(tmp_path, capsys):
    path = tmp_path / "bad\x1b[2J.yaml"
    path.write_text("a: [")
    assert main(["config", "show", str(path)]) == 2
    assert "\x1b" not in capsys.readouterr().err


# Reading recipes.

RECIPES = {
    "not UTF-8": b"model: {name: \xff\xfe}",
    "UTF-16": "model: {name: espnet}".encode("utf-16"),
    "a list as a key": b"? [a, b]\n: 1\n",
    "a map as a key": b"? {a: b}\n: 1\n",
    "deep": b"model: " + b"[" * 3000 + b"]" * 3000,
    "deep sections": b"".join(b" " * i + b"a:\n" for i in range(1500)),
    "many digits": b"seed: " + b"9" * 5000,
    "seed of 2**70": b"seed: 1180591620717411303424",
    "a date": b"seed: 2020-13-45",
    "options as a list": b"task: {name: segmentation, options: [1]}",
    "terms as text": b"distill: {terms: text}",
    "terms as a list": b"distill: {terms: [1, 2]}",
    "a term's options as text": b"distill: {pixel_wise: {weight: 1, options: text}}",
    "a tag": b"model: !!python/object/apply:os.system ['true']",
    "a loop": b"model: &a {name: espnet, options: *a}",
    "a list": b"[1, 2]",
    "zeros": bytes(100),
    "a name that is a number": b"model: {name: 3}",
    "a name that is a list": b"model: {name: [a]}",
}


@pytest.mark.parametrize("kind", RECIPES)
def test_strange_recipes(tmp_path, refused, kind):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(RECIPES[kind])
    assert "recipe.yaml" in refused("config", "validate", path)


@pytest.mark.parametrize(
    "options",
    [{"backbone": 1}, {"backbone": None}, {"backbone": ["resnet18"]}, {"backbone": {"a": 1}}],
)
def test_a_backbone_of_another_kind(tmp_path, refused, options):
    tree = small_tree()
    tree["model"] = {"name": "fpn_timm", "options": options}
    assert "model.options" in refused("config", "validate", write_recipe(tmp_path / "r.yaml", tree))


def test_a_seed_is_in_the_range_of_the_generators(tmp_path):
    tree = small_tree()
    tree["seed"] = 2**63 - 1
    assert load_config(write_recipe(tmp_path / "r.yaml", tree)).seed == 2**63 - 1
    torch.manual_seed(2**63 - 1)


# Writing a run.


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "recipe.yaml", small_tree(steps=2))


def test_places_that_cannot_be_written(tmp_path, recipe, refused):
    (tmp_path / "file").write_text("mine")
    places = [
        tmp_path / "file",
        tmp_path / "file" / "below",
        "/proc/nowhere",
        "/dev/null/x",
        tmp_path / ("n" * 300),
    ]
    for place in places:
        assert str(place) in refused("train", recipe, "--out", place, "--device", "cpu")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_limit_on_file_sizes(tmp_path, recipe, refused):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        message = refused("train", recipe, "--out", tmp_path / "runs", "--device", "cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "last.pt: File too large" in message
    assert "ulimit" in message
    (folder,) = (tmp_path / "runs").iterdir()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == []  # no half of a file stays
    assert (
        main(["train", str(recipe), "--out", str(tmp_path / "runs"), "--device", "cpu", "--resume"])
        == 0
    )


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")],
)
def test_a_full_or_read_only_disk(tmp_path, monkeypatch, number, remedy):
    def fails(file):
        raise OSError(number, os.strerror(number))

    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(UserError, match=rf"a\.json: .*{remedy}"):
        write_text(tmp_path / "a.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
            os.umask(mask)
            path = tmp_path / f"{mask}.safetensors"
            save_weights(nn.Linear(2, 2), path)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


# Reading a run folder.

DAMAGE = {
    "empty": b"",
    "garbage": bytes(range(256)),
    "a number": b"3\n",
    "a list": b"[1, 2]\n",
    "a table": b"{}\n",
    "strange": b'{"step": "x", "threads": [], "scores": 3}\n',
    "deep": b"[" * 5000,
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed after two of three steps: its folder's files."""
    folder = tmp_path_factory.mktemp("stopped") / "r"
    with dies_after(2):
        go(small_tree(steps=3), folder)
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def copied(files: dict, path: Path) -> RunFolder:
    for file, content in files.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(content)
    return RunFolder(path)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_damage_that_decides_is_refused(tmp_path, stopped, name, kind):
    folder = copied(stopped, tmp_path / "r")
    (folder.path / name).write_bytes(DAMAGE[kind])
    with pytest.raises(UserError, match=rf"{name}|started with other settings"):
        go(small_tree(steps=3), folder.path, resume=True)


@pytest.mark.parametrize("kind", ["garbage", "strange", "deep"])
def test_a_run_goes_on_without_what_decides_nothing(tmp_path, stopped, kind):
    folder = copied(stopped, tmp_path / "r")
    for path in (folder.metrics, folder.environment, folder.command):
        path.write_bytes(DAMAGE[kind])
    assert go(small_tree(steps=3), folder.path, resume=True) == 0
    assert json.loads(folder.result.read_text())["step"] == 3


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"step": 1},
        {"step": 1, "identity": 3},
        {"step": 1, "identity": {"processes": "1"}, "terms": {}},
    ],
)
def test_a_checkpoint_that_is_none_of_this_run(tmp_path, stopped, state):
    from densekd.engine.checkpoint import save_atomic

    folder = RunFolder(tmp_path / "r")
    folder.checkpoints.mkdir(parents=True)
    folder.config.write_bytes(next(v for k, v in stopped.items() if k.name == "config.yaml"))
    save_atomic(state, folder.last)
    with pytest.raises(UserError, match=r"last\.pt|started with"):
        go(small_tree(steps=3), folder.path, resume=True)


def line(value: object) -> bytes:
    text = json.dumps(value).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def test_a_forged_cache_index(tmp_path):
    good = {
        "at": 0, "size": 12, "crc": 1, "arrays": [["|u1", [2, 2, 3]]], "has_target": False, "extra": None, "key": "k"
    }  # fmt: skip
    forged = [
        3, [], {}, {"key": "a"}, {**good, "at": -1}, {**good, "size": 10**12}, {**good, "crc": "x"},
        {**good, "arrays": [["O", [2, 2, 3]]]}, {**good, "arrays": 3}, {**good, "arrays": [["|u1", [10**9, 1, 1]]]},
        {**good, "arrays": [["|u1", [-2, -2, 3]]]}, {**good, "key": []}, {**good, "more": 1}, {**good, "at": True},
    ]  # fmt: skip
    head = {"format": 2, "data": "data-0123abcd.bin"}
    path = tmp_path / "index"
    path.write_bytes(
        line(head) + b"".join(map(line, forged)) + line(good) + b"%08x [" % zlib.crc32(b"[")
    )
    assert read_index(path) == ("data-0123abcd.bin", {"k": good})
    for name in ("../../etc/passwd", "/etc/passwd", "data-0123abcd.bin/../x", 3, None):
        path.write_bytes(line({**head, "data": name}))
        assert read_index(path)[0] is None
