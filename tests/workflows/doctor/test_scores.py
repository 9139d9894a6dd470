"""Scores: beside a guess, beside the student's, with another input or class order; each check fires and is quiet."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from densekd.config.load import make_config
from densekd.distill.teacher import Teacher
from densekd.engine.launch import Process
from densekd.models.taps import Taps
from densekd.tasks import Segmentation
from densekd.types import Batch, InputSpec
from densekd.workflows.doctor.scores import (
    Few,
    class_order_findings,
    lead_finding,
    score_finding,
    seeing,
    try_inputs,
)

CLASSES = ["road", "sky", "car"]
TASK = Segmentation(CLASSES, [(0, 0, 0)] * 3)


@pytest.mark.parametrize(
    ("accuracy", "level"), [(0.9, "ok"), (0.4, "warning"), (0.32, "error"), (0.1, "error")]
)
def test_a_score_beside_a_guess(accuracy, level):
    guess = {"pixel_accuracy": 0.3, "miou": 0.1}
    finding = score_finding("teacher", TASK, {"pixel_accuracy": accuracy, "miou": 0.5}, guess, 4)
    assert finding.level == level
    assert f"pixel_accuracy {accuracy:.3f} (constant guess 0.300)" in finding.what
    assert (finding.advice != "") == (level != "ok")


def test_no_label_counts():
    scores = {"pixel_accuracy": float("nan"), "miou": None}
    assert score_finding("teacher", TASK, scores, scores, 4).level == "note"


def test_an_error_is_better_when_smaller():
    task = SimpleNamespace(
        quick_metric="abs_rel", metric_names=("abs_rel",), smaller_is_better={"abs_rel"}
    )
    good, bad = (
        score_finding("teacher", task, {"abs_rel": value}, {"abs_rel": 0.4}, 4)
        for value in (0.1, 0.41)
    )
    assert (good.level, bad.level) == ("ok", "error")


def test_classes_in_another_order():
    right = torch.tensor([[50, 1, 1], [1, 30, 1], [1, 1, 14]])
    assert class_order_findings(CLASSES, right) == []
    (finding,) = class_order_findings(CLASSES, right[:, [1, 0, 2]])
    assert finding.level == "error"
    assert "road is mostly sky, sky is mostly road" in finding.what
    # A network that says one class everywhere knows nothing under any name.
    assert class_order_findings(CLASSES, torch.tensor([[50, 0, 0], [32, 0, 0], [14, 0, 0]])) == []
    assert class_order_findings(CLASSES, None) == []
    # So does an untrained one that answers to brightness: 54 % under the best names, where a guess has 38 %.
    assert class_order_findings(CLASSES, torch.tensor([[9, 20, 9], [25, 3, 4], [20, 5, 5]])) == []


def test_the_teachers_lead():
    assert lead_finding(TASK, 0.6, [0.5]).level == "ok"
    finding = lead_finding(TASK, 0.51, [0.5], "the student alone (runs/x)")
    assert finding.level == "warning"
    assert "the student alone (runs/x) 0.500: the teacher is not clearly above" in finding.what
    assert "Train the teacher longer" in finding.advice


@pytest.mark.parametrize(("order", "level"), [("rgb", "warning"), ("bgr", "ok")])
def test_a_teacher_of_the_other_order(tiny_tree, order, level):
    """It wants BGR, and tells whether an image is more red than blue."""
    network = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[0, 2] = network.weight[1, 0] = 1.0
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        images=images,
        targets=(images[:, 2] > images[:, 0]).long(),
        labelled=torch.ones(2, dtype=torch.bool),
        inside=torch.ones(2, 8, 8, dtype=torch.bool),
        names=["a", "b"],
    )
    run = SimpleNamespace(
        task=Segmentation(["red", "blue"], [(0, 0, 0)] * 2),
        config=make_config(tiny_tree, "test"),
        process=Process(0, 1, torch.device("cpu")),
    )
    spec = InputSpec(mean=(0, 0, 0), std=(1, 1, 1), order=order)
    teacher = Teacher(Taps(network, {}, spec))
    (finding,) = try_inputs(teacher, run, [batch], 1e-3, guess=0.5)
    assert finding.level == level
    assert ("1.000 with order bgr instead of rgb" in finding.what) == (order == "rgb")
    assert teacher.network.input_spec == spec


def test_seeing_is_undone():
    own, other = InputSpec(), InputSpec(range=255.0)
    network = Taps(nn.Conv2d(3, 2, 1), {}, own)
    with seeing(network, other):
        assert network.input_spec is other
    assert network.input_spec is own


def test_a_few_samples_are_spread():
    class Reader:
        classes = CLASSES

        def __len__(self):
            return 101

        def read(self, index):
            return index

        def name(self, index):
            return str(index)

    few = Few(Reader(), 3)
    assert [few.read(i) for i in range(len(few))] == [0, 50, 100]
    assert (few.name(1), few.classes) == ("50", CLASSES)
    assert len(Few(Reader(), 500)) == 101
