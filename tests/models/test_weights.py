from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from densekd.errors import UserError, WeightsError
from densekd.models import (
    Taps,
    espnet,
    espnet_c,
    load_weights,
    pspnet_resnet18,
    read_metadata,
    read_weights,
    save_weights,
)

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {"model_state": {f"module.{k}": v for k, v in s.items()}}, "step": 1},
        lambda s: {"student": s, "optimizer": {"lr": 0.1}},
    ],
)
def test_wrapped_state_dicts(tmp_path, wrap) -> None:
    torch.save(wrap(STATE), tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), STATE)


def test_content_decides_not_the_name(tmp_path) -> None:
    save_file(STATE, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), STATE)
    torch.save(STATE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "old.bin"), STATE)


@pytest.mark.parametrize("first", [0x80, 0x3C, 0x50])
def test_header_lengths_that_look_like_other_files(tmp_path, first: int) -> None:
    path = tmp_path / "w.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    length = first if first > len(header) else first + 256
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\0" * 4)
    assert same(read_weights(path), {"a": torch.zeros(1)})


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("made_by_a_weights_file",))


def test_pickled_code_is_not_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "extra": Evil()}, "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("zip.pth", "bare.pth"):
        with pytest.raises(WeightsError, match=name):
            read_weights(name)
    assert not (tmp_path / "made_by_a_weights_file").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"PK\x03\x04 not really a zip", "damaged"),
        (b"\x80\x02 not really a pickle", "damaged"),
        (b"anything else", "neither a safetensors nor a PyTorch file"),
    ],
)
def test_bad_files(tmp_path, content: bytes, message: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "w.pth")


def test_other_bad_paths(tmp_path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_weights(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds no tensors; its keys are epoch"):
        read_weights(tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_truncated_files(tmp_path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    big = {"a": torch.rand(1000)}
    save_file(big, path) if suffix == "safetensors" else torch.save(big, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match="cut short"):
        read_weights(path)


def test_save_is_whole_or_nothing(tmp_path, monkeypatch) -> None:
    path = tmp_path / "runs" / "w.safetensors"
    network = nn.Conv2d(2, 3, 1).to(memory_format=torch.channels_last)
    save_weights(network, path, {"classes": '["road"]'})
    assert read_metadata(path) == {"classes": '["road"]'}
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("densekd.models.weight_files.save_file", full)
    with pytest.raises(UserError, match="disk full"):
        save_weights(network, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_shared_tensors_are_saved(tmp_path) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    save_weights(network, tmp_path / "w.safetensors")
    assert torch.equal(read_weights(tmp_path / "w.safetensors")["1.weight"], network[0].weight)


def test_metadata_of_files_without(tmp_path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    assert read_metadata(tmp_path / "w.pth") == {}
    with pytest.raises(WeightsError, match="no such"):
        read_metadata(tmp_path / "none")


def test_class_count_is_pointed_out() -> None:
    with pytest.raises(WeightsError, match="checkpoint has 19 classes, the network 11"):
        load_weights(espnet(11, p=1, q=1), espnet(19, p=1, q=1).state_dict())
    with pytest.raises(WeightsError, match="checkpoint has 19 classes, the network 11"):
        load_weights(pspnet_resnet18(11, width=0.25), pspnet_resnet18(19, width=0.25).state_dict())


def test_another_network_is_pointed_out_and_nothing_is_loaded() -> None:
    network = espnet_c(5, p=1, q=1)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(WeightsError, match="weights of another network"):
        load_weights(network, pspnet_resnet18(5, width=0.25).state_dict())
    with pytest.raises(WeightsError, match=r"missing \(\d+\): level2\.1"):
        load_weights(espnet_c(5, p=2, q=1), network.state_dict())
    with pytest.raises(WeightsError, match=r"unexpected \(\d+\): level2\.1"):
        load_weights(network, espnet_c(5, p=2, q=1).state_dict())
    assert same(network.state_dict(), before)


def test_not_strict_takes_what_fits() -> None:
    network, source = espnet_c(5, p=1, q=1), espnet_c(7, p=1, q=1)
    assert load_weights(network, source.state_dict(), strict=False) == ["classifier.conv.weight"]
    assert torch.equal(network.level1.conv.weight, source.level1.conv.weight)


def test_files_without_counters_and_wrapped_by_taps() -> None:
    network = espnet_c(5, p=1, q=1)
    state = {k: v + 1 for k, v in network.state_dict().items() if "num_batches" not in k}
    assert load_weights(network, state) == []
    assert load_weights(network, Taps(espnet_c(5, p=1, q=1)).state_dict()) == []


def test_a_prefix_is_dropped_and_keys_are_ignored() -> None:
    torch.manual_seed(0)
    network, other = nn.Linear(2, 3), nn.Linear(2, 3)
    state = {f"net.{k}": v for k, v in network.state_dict().items()}
    state |= {"net.head.aux.weight": torch.zeros(1), "ema.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"keys begin with 'net\.'"):
        load_weights(other, state)
    with pytest.raises(WeightsError, match=r"unexpected \(1\): ema\.weight"):
        load_weights(other, state, prefix="net.", ignore=["head.*"])
    assert load_weights(other, state, prefix="net.", ignore=["head.aux.*", "ema.*"]) == []
    assert torch.equal(other.weight, network.weight)
    assert load_weights(other, network.state_dict(), prefix="net.") == []  # nothing to drop
    with pytest.raises(WeightsError, match=r"both 'weight' and 'net\.weight'"):
        load_weights(other, {**network.state_dict(), **state}, prefix="net.")
