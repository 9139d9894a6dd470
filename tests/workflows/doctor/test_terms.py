"""The terms: what they compare, dead ones, and how hard they pull."""

import math

import pytest
import torch

from densekd.distill.maps import TeacherMaps
from densekd.distill.term import Term
from densekd.losses import ChannelWise, PairWise, PixelWise
from densekd.tasks import Segmentation
from densekd.workflows.doctor.terms import gradient_findings, node_findings, unweighted_findings


def one(value, norm, weight=10.0, task=1.0):
    found = {"task": (2.0, task), "distill/pixel_wise": (value, norm)}
    return gradient_findings(found, {"pixel_wise": weight})


@pytest.mark.parametrize(
    ("value", "norm", "weight", "level", "words"),
    [
        (1.0, 2.0, 10.0, "ok", "2 times the task's"),
        (1.0, 500.0, 10.0, "warning", "drowns the task"),
        (1.0, 0.001, 10.0, "warning", "is drowned by the task"),
        (0.0, 0.0, 10.0, "warning", "it is dead"),
        (1e-15, 1e-9, 10.0, "warning", "it is dead"),
        (1e-9, 1e-9, 1e-9, "warning", "is drowned by the task"),
        (3.0, 0.0, 10.0, "warning", "value 3 and gradient norm 0"),
        (0.0, 0.0, 0.0, "note", "its weight is 0"),
        (math.nan, 1.0, 10.0, "error", "not finite"),
        (1.0, math.inf, 10.0, "error", "not finite"),
    ],
)
def test_a_term_beside_the_task(value, norm, weight, level, words):
    task, term = one(value, norm, weight)
    assert task.level == "ok"
    assert (term.level, words in term.what) == (level, True)


def test_the_advice_is_a_weight():
    _, strong = one(1.0, 500.0)
    assert strong.setting == "distill.pixel_wise.weight"
    assert strong.advice == "A weight of about 0.02 would make both equal (now 10)"


def test_a_discriminator_that_has_not_learned_is_not_judged():
    found = {"task": (2.0, 1.0), "distill/holistic": (-0.01, 1e-3)}
    _, term = gradient_findings(found, {"holistic": 0.1})
    assert (term.level, "has not learned yet" in term.what) == ("ok", True)


def test_labels_that_teach_nothing():
    task, term = one(1.0, 1.0, task=0.0)
    assert (task.level, "the labels of this batch teach nothing" in task.what) == ("warning", True)
    assert term.level == "ok"


@pytest.mark.parametrize(
    ("granularity", "fires"), [(2, False), (7, False), (8, True), (1.0, True), (0.5, False)]
)
def test_a_single_node(granularity, fires):
    term = Term("pair_wise", PairWise(granularity=granularity), student="a", teacher="b")
    maps = {"pair_wise": [torch.zeros(1, 4, 16, 16)]}
    teacher = TeacherMaps({"pair_wise": [torch.zeros(1, 4, 8, 8)]})
    found = node_findings([term, Term("pixel_wise", PixelWise())], maps, teacher)
    assert [f.level for f in found] == (["error"] if fires else [])


def test_a_single_node_at_one_of_two_levels():
    term = Term("pair_wise", PairWise(granularity=2), student="a", teacher="b")
    levels = [torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 2, 2)]
    found = node_findings([term], {"pair_wise": levels}, TeacherMaps({"pair_wise": levels}))
    assert [(f.level, "at 1 of 2 levels (2×2)" in f.what) for f in found] == [("note", True)]


def test_class_weights_of_the_task_alone():
    weighted = Segmentation(["a", "b"], [(0, 0, 0), (9, 9, 9)], class_weights=[1, 5])
    plain = Segmentation(["a", "b"], [(0, 0, 0), (9, 9, 9)])
    pi = Term("pi", PixelWise())
    others = [Term("cwd", ChannelWise()), Term("pi", PixelWise(class_weights=[1, 5]))]
    (found,) = unweighted_findings([pi, *others], weighted)
    assert (found.level, found.setting) == ("note", "distill.pi.class_weights")
    assert unweighted_findings([pi], plain) == []
