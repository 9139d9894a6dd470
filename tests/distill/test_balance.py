"""Balancing of gradient norms, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densekd.distill import Distiller, Term
from densekd.distill.balance import Balance, gradient_norms
from densekd.losses import PixelWise
from densekd.models.espnet import espnet, espnet_c
from tests.distill.helpers import CLASSES, make_batch, make_task


def test_norms_are_those_of_all_parameters_together():
    a, b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(5.0))
    first = (a * torch.tensor([3.0, 0.0])).sum() + 4 * b  # gradient (3, 0), 4
    second = 2 * a[0]  # does not use b
    norms = gradient_norms([first, second, torch.zeros(())], [a, b])
    assert norms.tolist() == [5, 2, 0]
    assert a.grad is None
    (first + second).backward()  # the graph is still there
    assert a.grad.tolist() == [5, 0]


def test_factor_is_the_ratio_of_running_means():
    balance = Balance(every=2, decay=0.75)
    assert balance.factor().item() == 1
    balance.update(torch.tensor([6.0, 2.0]))
    assert balance.factor().item() == 3
    balance.update(
        torch.tensor([2.0, 10.0])
    )  # means 0.75 · 6 + 0.25 · 2 = 5 and 0.75 · 2 + 0.25 · 10 = 4
    assert balance.factor().item() == pytest.approx(1.25)
    for useless in ([0.0, 1.0], [1.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0]):
        balance.update(torch.tensor(useless))
    assert balance.factor().item() == pytest.approx(1.25)
    assert [balance.is_due(step) for step in range(4)] == [True, False, True, False]


@pytest.mark.parametrize("options", [{"every": 0}, {"decay": 1.0}, {"decay": -0.1}])
def test_what_cannot_be(options):
    with pytest.raises(ValueError, match="every is"):
        Balance(**options)


@pytest.mark.parametrize("weight", [0.5, lambda step: 0.5 + step])
def test_a_balanced_term_is_as_large_as_its_weight_says(weight):
    torch.manual_seed(0)
    teacher, student = espnet(CLASSES, p=1, q=1).eval(), espnet_c(CLASSES, p=1, q=1)
    term = Term("pixel_wise", PixelWise(), weight, balance=Balance(every=1, decay=0.0))
    distiller = Distiller(student, make_task(), teacher=teacher, terms=[term])
    for step in (0, 1):
        losses, _ = distiller.student_phase(make_batch(2), step)
        task, mine = gradient_norms(
            [losses["task/ce"], losses["distill/pixel_wise"]], list(student.parameters())
        )
        assert (mine / task).item() == pytest.approx(term.weight_at(step), rel=1e-4)
        shown = distiller.weights_at(step)["weight/pixel_wise"]
        assert shown == pytest.approx(term.weight_at(step) * term.balance.factor().item())
    state = distiller.student.terms_state()["pixel_wise"]
    assert state["balance.norms"].tolist() == term.balance.norms.tolist()


def test_a_term_that_weighs_nothing_is_not_measured():
    torch.manual_seed(0)
    term = Term("pixel_wise", PixelWise(), 0.0, balance=Balance())
    distiller = Distiller(
        espnet_c(CLASSES, p=1, q=1), make_task(), teacher=espnet(CLASSES, p=1, q=1), terms=[term]
    )
    assert distiller.student_phase(make_batch(2))[0]["distill/pixel_wise"] == 0
    assert term.balance.norms.tolist() == [0, 0]
