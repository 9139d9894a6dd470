"""The networks: weights, input, label spaces; each check fires and is quiet."""

import pytest
import torch
from torch import nn

from densekd.config.schema import Model
from densekd.models.espnet import espnet_c
from densekd.types import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from densekd.workflows.doctor.networks import (
    input_finding,
    left_over_findings,
    other_inputs,
    weights_finding,
)

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CLASSES = ["road", "sky", "car"]


# --- weights --------------------------------------------------------------------------------------------------------


def build(trained=()):
    """A network of two parts, of which some come trained, as a backbone does."""
    network = nn.ModuleDict({"backbone": nn.Conv2d(3, 8, 3), "head": nn.Conv2d(8, 2, 1)})
    for name in trained:
        for parameter in network[name].parameters():
            with torch.no_grad():
                parameter.copy_(torch.linspace(0, 1, parameter.numel()).view_as(parameter))
    return network


@pytest.mark.parametrize(
    ("trained", "where", "level", "words", "random"),
    [
        ((), "model", "ok", "start at random", 242),
        (("backbone",), "model", "ok", "come with the network, and", 18),
        (("backbone", "head"), "teacher", "ok", "none is random", 0),
        (("backbone",), "teacher", "warning", "start at random (head.weight, head.bias)", 18),
        ((), "teacher", "error", "no weights are loaded", 242),
    ],
)
def test_how_much_is_trained(trained, where, level, words, random):
    finding = weights_finding(where, Model("mine"), build(trained), lambda: build(trained))
    assert finding.level == level
    assert words in finding.what
    assert finding.numbers["random"] == random


def test_norms_that_start_as_constants_are_neither():
    finding = weights_finding(
        "model",
        Model("espnet_c"),
        espnet_c(num_classes=3, p=1, q=1),
        lambda: espnet_c(num_classes=3, p=1, q=1),
    )
    assert finding.numbers["trained"] == 0
    assert 0 < finding.numbers["random"] < finding.numbers["parameters"]


def test_a_file_is_loaded_whole():
    model = Model("mine", weights="a.pth")
    finding = weights_finding("teacher", model, build(), build)
    assert finding.level == "ok"
    assert "all 4 tensors" in finding.what


# --- input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "level"),
    [
        (InputSpec(), "ok"),
        (InputSpec(mean=(0, 0, 0), std=(1, 1, 1)), "ok"),
        (InputSpec(range=255.0, mean=(104, 117, 123), std=(57, 57, 58)), "ok"),
        (InputSpec(range=255.0), "warning"),  # ImageNet's mean on 0..255
        (InputSpec(range=1.0, mean=(104, 117, 123), std=(57, 57, 58)), "warning"),
    ],
)
def test_what_a_network_sees(spec, level):
    finding = input_finding("teacher", spec, IMAGES)
    assert finding.level == level
    assert finding.setting == "teacher.input"


def test_other_inputs_leave_out_the_own_one():
    own = InputSpec()
    others = other_inputs(own)
    # With ImageNet's mean in 0..255, swapped channels are what they are in 0..1: tried once.
    assert list(others) == [
        "range 255 instead of 1",
        "range 1, mean 0, std 1",
        "range 255, mean 0, std 1",
        "order bgr instead of rgb",
        "order bgr, mean and std in that order",
    ]
    # The same channel keeps its mean: the order alone differs.
    bgr = others["order bgr, mean and std in that order"]
    assert torch.allclose(own.normalize(IMAGES).flip(1), bgr.normalize(IMAGES))
    plain = other_inputs(InputSpec(mean=(0, 0, 0), std=(1, 1, 1)))
    imagenet = plain["order bgr, range 255, ImageNet's mean and std times 255 in that order"]
    assert torch.allclose(imagenet.normalize(IMAGES), own.normalize(IMAGES).flip(1), atol=1e-5)
    assert (own.mean, own.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert list(other_inputs(InputSpec(mean=(0.5,), std=(0.25,)))) == [
        "range 255 instead of 1",
        "range 1, mean 0, std 1",
        "range 255, mean 0, std 1",
    ]


# --- label spaces ---------------------------------------------------------------------------------------


def test_what_is_left_over():
    assert [f.level for f in left_over_findings(CLASSES, [[0], [1], [2]], 0.05)] == ["ok"]
    assert left_over_findings(CLASSES, [[0], [1], [2]], None) == []  # of a detector
    unknown, left = left_over_findings(CLASSES, [[0], [], [2]], 0.4)
    assert (unknown.level, "knows no sky" in unknown.what) == ("note", True)
    assert (left.level, "40.0%" in left.what) == ("warning", True)
