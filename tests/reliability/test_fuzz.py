"""Recipes, command lines and weights files changed by chance: each ends as it should, never in a traceback.

What is drawn depends on the seed alone, so that a failure can be repeated; the message names what was drawn.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from densekd.cli.main import main
from densekd.config.load import list_configs, load_config, make_config, shipped_configs
from densekd.errors import UserError, WeightsError
from densekd.models.weights import load_weights, save_weights
from densekd.workflows.load import load

VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**70, -(2**70), 0.0, -0.5, 1e300, float("inf"), float("nan"), "", " ", "text",
    "a.b", "a.b.C", "../..", "\x1b[2J", "é" * 300, [], [[]], [1], [1, 2], [-1, 0], ["a"], {}, {"a": 1}, {"weight": 1},
    {"a": {"b": {"c": []}}}, "1e5", "[256, 256]", "null",
]  # fmt: skip


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value of a tree."""
    if not isinstance(tree, dict):
        return [path]
    return [path] * bool(path) + [p for k, v in tree.items() for p in places(v, (*path, k))]


def changed(draw: random.Random, tree: dict) -> tuple[dict, str]:
    """A recipe with one to three changes, and what they are."""
    tree, done = copy.deepcopy(tree), []
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(places(tree))
        node = tree
        for key in path[:-1]:
            node = node[key]
        what = draw.choice(["value", "drop", "add", "rename"])
        if what == "value":
            node[path[-1]] = copy.deepcopy(draw.choice(VALUES))
        elif what == "drop":
            del node[path[-1]]
        elif what == "rename":
            node[str(draw.choice(["", "x", path[-1] + "s", path[-1][:-1]]))] = node.pop(path[-1])
        else:
            node[draw.choice(["x", "weight", "name", "options", "loss"])] = copy.deepcopy(
                draw.choice(VALUES)
            )
        done.append(f"{what} {'.'.join(map(str, path))}")
        if not tree:
            break
    return tree, f"{'; '.join(done)}: {tree}"


def shipped() -> list[dict]:
    root = shipped_configs()
    return [yaml.safe_load((root / name).read_text()) for name in list_configs()]


def try_recipes(count: int, seed: int, build: bool) -> None:
    draw, trees = random.Random(seed), shipped()
    ended = {"valid": 0, "refused": 0}
    for _ in range(count):
        tree, what = changed(draw, draw.choice(trees))
        try:
            config = make_config(tree, "fuzz")
            if build:
                from densekd.workflows.validate import validate

                validate(config)
            ended["valid"] += 1
        except UserError:
            ended["refused"] += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{what}")
    assert all(ended.values()), ended


def test_recipes_are_read_or_refused():
    try_recipes(400, seed=0, build=False)


@pytest.mark.slow
def test_recipes_are_built_or_refused():
    try_recipes(80, seed=1, build=True)


def test_bytes_of_recipes_are_read_or_refused(tmp_path):
    draw = random.Random(2)
    texts = [(shipped_configs() / name).read_bytes() for name in list_configs()]
    path = tmp_path / "recipe.yaml"
    for _ in range(60):
        text = bytearray(draw.choice(texts))
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(text))
            text[at : at + draw.randint(0, 3)] = draw.choice(
                [
                    b"",
                    b"\xff",
                    b"\0",
                    b"[",
                    b"}",
                    b": ",
                    b"&a",
                    b"*a",
                    b"- ",
                    b"\t",
                    b"!!x",
                    b"9" * 400,
                ]
            )
        path.write_bytes(bytes(text))
        try:
            load_config(path)
        except UserError:
            continue
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{bytes(text)!r}")


WORDS = [
    "demo", "train", "distill", "evaluate", "predict", "export", "latency", "ablate", "taps", "data", "list",
    "config", "show", "validate", "check", "models", "losses", "doctor", "report", "watch", "serve", "compare", "tune",
    "bench", "completion", "--over", "train.steps=1,2", "--port=99999999", "--port", "--models", "nowhere", "",
    "--", "-x", "--help", "--name", "--out",
    "--resume", "--seed", "--seed=x", "--seed=9" + "9" * 30, "--device", "tpu", "--train.steps", "--train.steps=0",
    "--model.name", "--model.name=x.y", "--a.b.c=1", "--data.root=/nowhere", "[1,", "é", "\x1b[2J", "x" * 400, "../..",
    "/dev/null", "/proc", "camvid/espnet", "--weights", "/nowhere.pth",
]  # fmt: skip


def try_command_lines(count: int, seed: int, capsys: Any) -> None:
    draw = random.Random(seed)
    for _ in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, 5))]
        # None of these may begin real work: no recipe among the words has its data, and a demo would.
        if words[0] == "demo":
            words[0] = "list"
        try:
            status = main(words)
        except SystemExit as end:  # the parser of options
            status = end.code
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{words}")
        said = capsys.readouterr()
        assert status in (0, 1, 2, None), words
        assert "Traceback" not in said.err, words


def test_command_lines_are_obeyed_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try_command_lines(30, 3, capsys)


@pytest.mark.slow
def test_many_command_lines_are_obeyed_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try_command_lines(200, 4, capsys)


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Bytes with a piece overwritten, left out, doubled or put elsewhere."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not content:
            break
        at = draw.randrange(min(len(content), draw.choice([300, len(content)])))
        size = draw.randint(1, 40)
        what = draw.randrange(4)
        if what == 0:
            content[at : at + size] = draw.randbytes(size)
        elif what == 1:
            del content[at : at + size]
        elif what == 2:
            content[at:at] = content[at : at + size]
        else:
            content = content[: max(1, at)] if draw.random() < 0.3 else content
    return bytes(content)


def try_weights(count: int, seed: int, folder: Any) -> None:
    draw = random.Random(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save_weights(network, folder / "own.safetensors", {"densekd": json.dumps({"classes": ["a"]})})
    torch.save(network.state_dict(), folder / "foreign.pth")
    torch.save(network.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    files = {
        name: (folder / name).read_bytes() for name in ("own.safetensors", "foreign.pth", "old.pth")
    }
    refused = 0
    for _ in range(count):
        name = draw.choice(list(files))
        (folder / name).write_bytes(mutated(draw, files[name]))
        for read in (lambda path: load_weights(network, path), load):
            try:
                read(folder / name)
            except WeightsError:
                refused += 1
            except Exception as error:
                pytest.fail(
                    f"{type(error).__name__}: {error}\n{name}: {(folder / name).read_bytes()!r}"
                )
    assert refused > count


@pytest.mark.filterwarnings("ignore")
def test_weights_files_are_loaded_or_refused(tmp_path):
    try_weights(40, 5, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_weights_files_are_loaded_or_refused(tmp_path):
    try_weights(300, 6, tmp_path)
