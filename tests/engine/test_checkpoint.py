"""Files are whole or old, never half."""

import pytest
import torch

from densekd.engine import checkpoint
from densekd.errors import UserError


def test_round_trip(tmp_path):
    path = tmp_path / "a" / "last.pt"
    checkpoint.save_atomic({"step": 3, "w": torch.ones(2), "none": None}, path)
    state = checkpoint.load_checkpoint(path)
    assert state["step"] == 3
    assert torch.equal(state["w"], torch.ones(2))


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save_atomic({"step": 1}, path)

    def crash(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_atomic({"step": 2}, path)
    assert checkpoint.load_checkpoint(path) == {"step": 1}


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.pt"):
        checkpoint.load_checkpoint(path)
