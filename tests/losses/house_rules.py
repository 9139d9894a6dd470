"""What every distillation loss of two maps is held to, whatever its formula.

A loss is given as ``loss(student, teacher, mask, labels)``; those that need no labels leave them alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.golden_rule import load_golden

Loss = Callable[[Tensor, Tensor, "Tensor | None", Tensor], Tensor]


def maps(n=2, c=5, h=6, w=7, seed=0, dtype=torch.float32, teacher_c=None):
    """Random (student with gradient, teacher, labels)."""
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(n, c, h, w, generator=g, dtype=dtype)
    teacher = torch.randn(n, teacher_c or c, h, w, generator=g, dtype=dtype)
    labels = torch.randint(0, c, (n, h, w), generator=g)
    return student.requires_grad_(), teacher, labels


def check_house_rules(loss: Loss, *, c: int = 5, least_batch: int = 1, zeros: bool = True) -> None:
    """Gradients, masks, ignore-only crops, batch 1, odd sizes, zero features, half precision."""
    student, teacher, labels = maps(c=c)
    teacher.requires_grad_()
    value = loss(student, teacher, None, labels)
    value.backward()
    assert value.shape == ()
    assert value > 0
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    teacher = teacher.detach()

    assert loss(teacher, teacher, None, labels).abs() < 1e-6

    for n, h, w in ((1, 6, 7), (2, 5, 3), (2, 1, 4)):
        small, other, classes = maps(max(n, least_batch), c, h, w, seed=1)
        loss(small, other, None, classes).backward()
        assert small.grad.isfinite().all(), (n, h, w)
        assert small.grad.abs().sum() > 0, (n, h, w)

    # What is masked may hold anything, and gets no gradient.
    mask = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(2)) > 0.4
    broken = [x.detach().masked_fill(~mask[:, None], v) for x in (student, teacher) for v in (0.0,)]
    clean = loss(*broken, mask, labels)
    spoiled = broken[0].masked_fill(~mask[:, None], torch.inf).requires_grad_()
    value = loss(spoiled, broken[1].masked_fill(~mask[:, None], torch.nan), mask, labels)
    torch.testing.assert_close(value, clean)
    value.backward()
    assert spoiled.grad.isfinite().all()
    assert (spoiled.grad.abs().sum(1)[~mask] == 0).all()

    # Nothing but ignored pixels: 0 with a graph. One such image among two: the other decides.
    empty = torch.zeros_like(mask)
    student.grad = None
    value = loss(student, teacher, empty, labels)
    value.backward()
    assert value == 0
    assert torch.equal(student.grad, torch.zeros_like(student))
    empty[0] = True
    student.grad = None
    loss(student, teacher, empty, labels).backward()
    assert student.grad.isfinite().all()
    assert (student.grad[1] == 0).all()

    if zeros:
        for zero in (torch.zeros(2, c, 6, 7), student.detach() * (mask[:, None])):
            zero.requires_grad_()
            value = loss(zero, teacher, None, labels)
            value.backward()
            assert value.isfinite()
            assert zero.grad.isfinite().all()
        assert loss(student, torch.zeros_like(teacher), None, labels).isfinite()

    for dtype in (torch.float16, torch.bfloat16):
        halves = [(1e4 * x.detach()).to(dtype) for x in (student, teacher)]
        halves[0].requires_grad_()
        value = loss(*halves, mask, labels)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert halves[0].grad.isfinite().all()


def check_batch_size(loss: Loss, n: int, c: int, h: int, w: int, seed: int) -> None:
    """The batch twice over changes nothing."""
    student, teacher, labels = maps(n, c, h, w, seed)
    twice = loss(
        student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), None, labels.repeat(2, 1, 1)
    )
    torch.testing.assert_close(twice, loss(student, teacher, None, labels), rtol=1e-4, atol=1e-6)


def check_map_size(loss: Loss, n: int, c: int, h: int, w: int, seed: int) -> None:
    """The map laid out six times changes nothing."""
    student, teacher, labels = maps(n, c, h, w, seed)
    tiled = loss(
        student.repeat(1, 1, 2, 3), teacher.repeat(1, 1, 2, 3), None, labels.repeat(1, 2, 3)
    )
    torch.testing.assert_close(tiled, loss(student, teacher, None, labels), rtol=1e-4, atol=1e-6)


def check_mask_is_a_selection(loss: Loss, n: int, c: int, h: int, w: int, seed: int) -> None:
    """Masked pixels are as if they were not there: the others in a row give the same."""
    student, teacher, labels = maps(n, c, h, w, seed)
    mask = torch.rand(h, w, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[0, 0] = True
    rows = [x[:, :, mask][:, :, None] for x in (student, teacher)]  # (N, C, 1, M)
    selected = loss(*rows, None, labels[:, mask][:, None])
    masked = loss(student, teacher, mask.expand(n, h, w), labels)
    torch.testing.assert_close(masked, selected, rtol=1e-4, atol=1e-6)


def check_golden(loss, row: str, kind: str, *, value: float = 1e-5, gradient: float = 1e-4) -> None:
    """Value and gradient of the published code, on ``"logits"`` or ``"feature"`` of the golden file."""
    inputs, golden = load_golden("seed_losses"), load_golden("zoo_losses")
    student = inputs[f"{kind}_student"].requires_grad_()
    result = loss(student, inputs[f"{kind}_teacher"])
    result.backward()
    expected = golden[f"{row}.grad"]
    torch.testing.assert_close(result.detach(), golden[f"{row}.loss"], rtol=value, atol=0)
    assert (student.grad - expected).norm() / expected.norm() <= gradient


def check_gradient(loss: Loss, *, c: int = 3, n: int = 2, h: int = 2, w: int = 3) -> None:
    """By finite differences in float64, with and without a mask."""
    student, teacher, labels = maps(n, c, h, w, seed=3, dtype=torch.float64)
    mask = torch.tensor([[[True, True, False], [True, False, True]]]).expand(n, h, w)
    for m in (None, mask):
        assert torch.autograd.gradcheck(lambda s, m=m: loss(s, teacher, m, labels), (student,))
