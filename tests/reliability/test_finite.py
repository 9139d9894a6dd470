"""Weights that are no numbers are neither loaded nor saved, and the one to blame is named."""

import pytest
import torch
from torch import nn

from densekd.config.load import make_config
from densekd.engine.checkpoint import load_checkpoint
from densekd.engine.folder import RunFolder
from densekd.errors import NonFiniteError, UserError, WeightsError
from densekd.models.espnet import espnet, espnet_c
from densekd.models.finite import not_finite
from densekd.models.weights import load_weights, save_weights
from densekd.scenes import CLASSES
from densekd.workflows.evaluate import evaluate_weights
from tests.reliability.runs import go, small_tree


class Masked(nn.Module):
    """Infinities on purpose in a buffer, as a mask of attention has them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf))


def test_what_counts_as_finite():
    network = Masked()
    assert not_finite(network) == []
    network.norm.running_var[0] = torch.inf
    network.linear.bias.data[1] = torch.nan
    assert not_finite(network) == ["linear.bias", "norm.running_var"]
    assert load_weights(Masked(), Masked().state_dict()) == []
    with pytest.raises(WeightsError, match="2 of 8 tensors hold NaN or infinity"):
        load_weights(Masked(), network.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_evaluate_refuses_such_weights(tmp_path, value):
    network = espnet_c(num_classes=len(CLASSES), p=1, q=1)
    next(network.parameters()).data.view(-1)[0] = value
    save_weights(network, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match=r"bad\.safetensors: 1 of \d+ tensors hold NaN"):
        evaluate_weights(
            make_config(small_tree(), "test"),
            tmp_path / "bad.safetensors",
            "val",
            device="cpu",
            quiet=True,
        )


def test_a_teacher_with_such_weights_is_named(tmp_path):
    tree = small_tree()
    network = espnet(num_classes=len(CLASSES), p=1, q=1)
    next(network.parameters()).data.view(-1)[0] = torch.nan
    save_weights(network, tmp_path / "teacher.safetensors")
    tree["teacher"] = {
        "name": "espnet", "options": {"p": 1, "q": 1}, "weights": str(tmp_path / "teacher.safetensors")
    }  # fmt: skip
    tree["distill"] = {"pixel_wise": {"weight": 1}}
    with pytest.raises(WeightsError, match=r"teacher\.safetensors.*NaN"):
        go(tree, tmp_path / "r", distil=True)
    assert not (tmp_path / "r").exists()


def test_a_teacher_that_overflows_is_blamed_and_not_the_learning_rate(tmp_path, monkeypatch):
    from densekd.distill.teacher import Teacher

    tree = small_tree()
    tree["teacher"] = {"name": "espnet", "options": {"p": 1, "q": 1}, "allow_untrained": True}
    tree["distill"] = {"pixel_wise": {"weight": 1}}
    forward, calls = Teacher.forward, []

    def overflows(self, images, prediction=True):
        output = forward(self, images, prediction)
        calls.append(1)
        if len(calls) > after:
            output.prediction[0, 0, 0, 0] = torch.inf
        return output

    monkeypatch.setattr(Teacher, "forward", overflows)
    after = 0
    with pytest.raises(UserError, match="the teacher gives NaN or infinity for the first images"):
        go(tree, tmp_path / "first", distil=True)
    assert not (tmp_path / "first").exists()
    calls.clear()
    after = 4
    with pytest.raises(NonFiniteError, match="the teacher gives NaN") as caught:
        go(tree, tmp_path / "later", distil=True)
    assert "optim.lr" not in str(caught.value)


def test_what_a_step_made_infinite_is_not_saved(tmp_path):
    tree = small_tree(steps=6, save_every=1)
    assert go({**tree, "train": {**tree["train"], "steps": 2}}, tmp_path / "good") == 0
    tree["optim"] = {"name": "sgd", "lr": 1e20, "weight_decay": 1e20}
    with pytest.raises(NonFiniteError, match=r"tensors hold NaN or infinity") as caught:
        go(tree, tmp_path / "mad")
    assert "no checkpoint has been written yet" in str(caught.value)
    folder = RunFolder(tmp_path / "mad")
    assert not folder.last.exists()
    assert not folder.student.exists()


def test_the_message_says_when_the_weights_went_wrong(tmp_path):
    tree = small_tree(steps=6, save_every=100)
    tree["optim"] = {"name": "sgd", "lr": 1e20, "weight_decay": 1e20}
    with pytest.raises(NonFiniteError) as caught:
        go(tree, tmp_path / "mad")
    message = str(caught.value)
    assert "Before this step already" in message
    assert "tensors hold NaN or infinity" in message
    assert "last checkpoint saved is good" not in message


def test_last_good_checkpoint_stays(tmp_path, monkeypatch):
    from densekd.engine.trainer import Training

    original = Training.save

    def poisoned(self):
        if self.done == 3:
            next(self.student.parameters()).data.view(-1)[0] = torch.nan
        original(self)

    monkeypatch.setattr(Training, "save", poisoned)
    with pytest.raises(NonFiniteError, match=r"last\.pt is of step 2, and its weights are finite"):
        go(small_tree(), tmp_path / "r")
    assert load_checkpoint(RunFolder(tmp_path / "r").last)["step"] == 2


def test_a_norm_that_overflows_blames_no_parameter():
    from densekd.engine.step import _raise_non_finite

    network = nn.Linear(2, 2)
    network.weight.grad = torch.full((2, 2), 3e38)
    with pytest.raises(NonFiniteError, match="its norm is infinite"):
        _raise_non_finite([], network, 7, "")
