"""What a run writes and reads again knows when it is damaged."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from densekd.engine.checkpoint import load_checkpoint, save_atomic
from densekd.engine.folder import RunFolder
from densekd.errors import UserError, WeightsError
from densekd.models.weights import read_metadata, read_weights, save_weights
from densekd.ops.digest import LENGTH
from tests.reliability.runs import dies_after, flip, flips, go, small_tree


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    generator = torch.Generator().manual_seed(0)
    state = {
        "conv.weight": torch.randn(8, 3, 3, 3, generator=generator),
        "conv.bias": torch.zeros(8),
    }
    save_atomic({"step": 3, "student": state}, path)
    return path


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "student.safetensors"
    torch.manual_seed(0)
    save_weights(
        nn.Conv2d(3, 8, 3), path, {"densekd": json.dumps({"classes": ["road"], "note": ""})}
    )
    return path


def test_every_flipped_bit_of_a_checkpoint_is_noticed(checkpoint):
    assert load_checkpoint(checkpoint)["step"] == 3
    for bit in flips(checkpoint, 60, seed=0):
        with pytest.raises(UserError, match=r"last\.pt"):
            load_checkpoint(checkpoint)
        with pytest.raises(WeightsError):  # the same file as --model.weights
            read_weights(checkpoint)
        assert bit >= 0


def test_a_flip_in_the_digest_itself_is_noticed(checkpoint):
    length = len(checkpoint.read_bytes())
    for byte in range(length - LENGTH - 2, length):
        flip(checkpoint, 8 * byte)
        with pytest.raises(UserError):
            load_checkpoint(checkpoint)
        flip(checkpoint, 8 * byte)
    assert load_checkpoint(checkpoint)["step"] == 3


def test_every_flipped_bit_of_weights_is_noticed(weights):
    before = read_weights(weights)
    for _ in flips(weights, 60, seed=1):
        with pytest.raises(WeightsError, match=r"student\.safetensors"):
            read_weights(weights)
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    for bit in range(64, 8 * header, 13):  # names, shapes, description
        flip(weights, bit)
        with pytest.raises(WeightsError):
            read_weights(weights)
        flip(weights, bit)
    assert torch.equal(read_weights(weights)["weight"], before["weight"])


def test_weights_of_others_load_without_a_digest(tmp_path):
    for form, save in (("safetensors", save_file), ("pth", torch.save)):
        path = tmp_path / f"foreign.{form}"
        save({"weight": torch.ones(2)}, path)
        assert torch.equal(read_weights(path)["weight"], torch.ones(2))
    save_file({"weight": torch.ones(2)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert read_metadata(tmp_path / "m.safetensors") == {"format": "pt"}
    assert list(read_weights(tmp_path / "m.safetensors")) == ["weight"]


def test_equal_weights_give_equal_files_whatever_stands_beside_them(tmp_path):
    files = []
    for i in range(8):
        path = tmp_path / f"{i}.safetensors"
        network = nn.Linear(2, 2)
        nn.init.ones_(network.weight)
        nn.init.zeros_(network.bias)
        save_weights(network, path, {"b": "ü \x1b", "a": "2", "c": '"'})
        assert read_metadata(path) == {"b": "ü \x1b", "a": "2", "c": '"'}
        files.append(path.read_bytes())
    assert len(set(files)) == 1


def test_after_damage_the_run_goes_on_from_the_checkpoint_before(tmp_path, capsys):
    tree = small_tree(steps=5)
    assert go(tree, tmp_path / "whole") == 0
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    assert not whole.previous.exists()  # a run that has ended needs none
    with dies_after(3):
        go(tree, parts.path)
    assert load_checkpoint(parts.last)["step"] == 3
    assert load_checkpoint(parts.previous)["step"] == 2
    size = len(parts.last.read_bytes())
    flip(parts.last, 8 * (size // 5))
    capsys.readouterr()
    with dies_after(3):  # the damaged one never becomes the one before
        go(tree, parts.path, resume=True)
    said = capsys.readouterr().out
    assert "last.pt cannot be read" in said
    assert "previous.pt, which is of step 2" in said
    assert load_checkpoint(parts.previous)["step"] == 2
    assert go(tree, parts.path, resume=True) == 0
    assert parts.student.read_bytes() == whole.student.read_bytes()
    scores = [json.loads(f.result.read_text())["scores"] for f in (whole, parts)]
    assert scores[0] == scores[1]


def test_with_both_damaged_nothing_is_believed(tmp_path):
    tree = small_tree(steps=3)
    with dies_after(2):
        go(tree, tmp_path / "r")
    folder = RunFolder(tmp_path / "r")
    for path in (folder.last, folder.previous):
        flip(path, 8 * (len(path.read_bytes()) // 3))
    with pytest.raises(UserError, match=r"(?s)last\.pt.*previous\.pt"):
        go(tree, folder.path, resume=True)
