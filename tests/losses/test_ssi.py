"""Scale- and shift-invariant depth: hand values, NumPy, invariance, masks, and maps of one value."""

import numpy as np
import pytest
import torch

from densekd.losses import SSI, ssi
from tests.losses.depth_inputs import maps


def as_map(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_the_median_by_hand():
    """Medians 2 and 2, mean distances (1 + 0 + 4) / 3 and (1 + 0 + 1) / 3: (-.6, 0, 2.4) and (-1.5, 0, 1.5)."""
    student, teacher = as_map(1.0, 2.0, 6.0), as_map(1.0, 2.0, 3.0)
    whole = ssi(student, teacher, form="depth", trim=0.0)
    assert whole.item() == pytest.approx((0.9 + 0 + 0.9) / 6, rel=1e-6)
    # A third of three pixels is left out: one of the two largest.
    assert ssi(student, teacher, form="depth", trim=0.34).item() == pytest.approx(0.9 / 6, rel=1e-6)
    # 1 / (1, 1/2, 1/6) is the same student.
    inverse = ssi(1 / student, teacher, trim=0.0)
    assert inverse.item() == pytest.approx(whole.item(), rel=1e-5)


def test_least_squares_against_numpy():
    student, teacher = maps()
    values = []
    for x, y in zip(
        student.double().flatten(1).numpy(), teacher.double().flatten(1).numpy(), strict=True
    ):
        columns = np.stack([x, np.ones_like(x)], 1)
        (_, _), rest, *_ = np.linalg.lstsq(columns, y, rcond=None)
        values.append(rest[0] / (2 * len(x)))
    value = ssi(student, teacher, form="depth", alignment="least_squares")
    assert value.item() == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize("alignment", ["median", "least_squares"])
def test_scale_and_shift_cost_nothing(alignment):
    inverse = maps()[1]
    assert ssi(1 / (0.3 * inverse + 0.2), inverse, alignment=alignment) < 1e-6
    free = ssi(maps()[0], inverse, alignment="median")
    torch.testing.assert_close(ssi(maps()[0], 7 * inverse - 40), free, rtol=1e-4, atol=1e-6)
    # Another order is not free, and depth for inverse depth is another order.
    assert ssi(inverse, inverse, alignment=alignment) > 0.05


@pytest.mark.parametrize(
    "options", [{}, {"alignment": "least_squares"}, {"form": "depth", "trim": 0.0}]
)
def test_gradcheck(options):
    student, teacher = (x.double() for x in maps(2, 3, 3))
    assert torch.autograd.gradcheck(lambda s: ssi(s, teacher, **options), student.requires_grad_())


@pytest.mark.parametrize("alignment", ["median", "least_squares"])
def test_masks_and_what_is_no_number(alignment):
    loss = SSI(alignment=alignment)
    student, teacher = maps()
    teacher[1, 0, 0, 0] = torch.inf
    mask = torch.ones(2, 6, 7, dtype=torch.bool)
    mask[0, 2] = False
    clean = loss(student, teacher, mask)
    spoiled = student.masked_fill(~mask[:, None], torch.nan)
    spoiled[1, 0, 0, 0] = torch.nan
    spoiled.requires_grad_()
    value = loss(spoiled, teacher, mask)
    assert torch.equal(value, clean)
    value.backward()
    assert spoiled.grad.isfinite().all()
    assert (spoiled.grad[0, 0, 2] == 0).all()
    # One image without a pixel: the other decides. None at all: 0 with a graph.
    mask[0] = False
    torch.testing.assert_close(loss(student, teacher, mask), loss(student[1:], teacher[1:]))
    student.requires_grad_()
    nothing = loss(student, teacher, torch.zeros_like(mask))
    nothing.backward()
    assert nothing == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("alignment", ["median", "least_squares"])
def test_maps_of_one_value_and_of_zero(alignment):
    teacher = maps()[1]
    for value in (0.0, 2.0):
        flat = torch.full_like(teacher, value).requires_grad_()
        loss = ssi(flat, teacher, alignment=alignment)
        loss.backward()
        assert loss.isfinite()
        assert flat.grad.isfinite().all()
        assert ssi(teacher, flat.detach(), alignment=alignment).isfinite()


def test_half_precision():
    student, teacher = (x.bfloat16() for x in maps())
    value = ssi(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, ssi(student.float(), teacher.float()))


def test_bad_arguments():
    student, teacher = maps()
    for given, message in (
        ({"form": "disparity"}, r"form.*inverse"),
        ({"alignment": "mean"}, r"alignment.*median"),
        ({"trim": 1.0}, r"trim is 1\.0; expected a share in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            SSI(**given)
    with pytest.raises(ValueError, match="differ in size"):
        ssi(student[..., :3], teacher)
    with pytest.raises(ValueError, match=r"expected depth \(N, 1, H, W\)"):
        ssi(student.expand(-1, 5, -1, -1), teacher)
