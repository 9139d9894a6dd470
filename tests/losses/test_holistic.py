from __future__ import annotations

import pytest
import torch

from densekd.losses import Holistic, discriminator_loss, gradient_penalty, holistic
from tests.golden_rule import load_golden


@pytest.mark.parametrize("mode", ["wgan-gp", "hinge"])
def test_golden(mode):
    golden = load_golden("seed_losses")
    teacher, student = golden["d_out_teacher"], golden["d_out_student"]
    torch.testing.assert_close(
        discriminator_loss(teacher, student, mode=mode),
        golden[f"adversarial.{mode}.discriminator_loss"],
        rtol=1e-5,
        atol=0,
    )
    expected = golden[f"adversarial.{mode}.student_loss"]
    torch.testing.assert_close(holistic(student, mode=mode), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(Holistic(mode=mode)(student), expected, rtol=1e-5, atol=0)


def test_values_by_hand():
    teacher, student = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert discriminator_loss(teacher, student).item() == -2.0
    assert discriminator_loss(teacher, student, mode="hinge").item() == 0.5 + 1.0
    assert holistic(student).item() == 1.0


def test_exception():
    x = torch.zeros(2)
    for call in (lambda: holistic(x, mode="gan"), lambda: discriminator_loss(x, x, mode="gan")):
        with pytest.raises(ValueError, match="'gan'; choose one of 'wgan-gp', 'hinge'"):
            call()
    with pytest.raises(ValueError, match="choose one of"):
        Holistic(mode="gan")
    with pytest.raises(ValueError, match="requires_grad_"):
        gradient_penalty(x, x)


def test_penalty_by_hand():
    # D(x) = w · x with ‖w‖ = 5: the penalty is (5 − 1)², its gradient 2 (5 − 1) w / 5.
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    x = torch.randn(7, 2, requires_grad=True)
    penalty = gradient_penalty(x @ w, x)
    penalty.backward()
    assert penalty.item() == pytest.approx(16.0)
    torch.testing.assert_close(w.grad, torch.tensor([4.8, 6.4]))


def test_penalty_is_safe_at_zero_gradient():
    w = torch.zeros(3, requires_grad=True)
    x = torch.randn(2, 3, requires_grad=True)
    penalty = gradient_penalty(x @ w, x)
    penalty.backward()
    assert penalty.item() == pytest.approx(1.0, abs=1e-5)
    assert w.grad.isfinite().all()


def test_penalty_gradcheck():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda w: gradient_penalty((x @ w).tanh(), x), w)


@pytest.mark.parametrize("mode", ["wgan-gp", "hinge"])
def test_gradcheck_and_half_precision(mode):
    t, s = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.autograd.gradcheck(lambda t, s: discriminator_loss(t, s, mode=mode), (t, s))
    assert holistic(torch.full((70000,), 6e4, dtype=torch.float16), mode=mode).isfinite()
