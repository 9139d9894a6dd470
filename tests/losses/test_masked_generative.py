"""MGD by hand values; its generator is a module that learns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from densekd.losses import MaskedGenerative, masked_generative, scale_between
from tests.losses.house_rules import (
    check_batch_size,
    check_gradient,
    check_house_rules,
    check_map_size,
    check_mask_is_a_selection,
    maps,
)


def loss(s, t, mask, labels):
    """With nothing masked and a generator that hands its input on: the rest of the formula."""
    return masked_generative(s, t, nn.Identity(), mask_ratio=0.0, mask=mask)


def test_value_by_hand():
    # Of two places the second is masked; G doubles. (2·3 - 1)² and (0 - 2)².
    student = torch.tensor([3.0, 5.0]).view(1, 1, 1, 2)
    teacher = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    kept = torch.tensor([[[True, False]]])
    value = masked_generative(student, teacher, lambda x: 2 * x, kept=kept)
    assert value.item() == pytest.approx((25 + 4) / 2)
    paper = masked_generative(student, teacher, lambda x: 2 * x, kept=kept, convention="paper")
    assert paper.item() == pytest.approx(2e-5 * 29)


def test_a_masked_place_is_masked_in_all_channels_and_as_often_as_asked():
    seen = []

    def watch(x):
        seen.append(x)
        return x

    torch.manual_seed(0)
    ones = torch.ones(2, 5, 60, 70)
    masked_generative(ones, ones, watch, mask_ratio=0.65)
    places = seen[0][:, 0]
    assert torch.equal(seen[0], places[:, None].expand(-1, 5, -1, -1))
    assert places.mean().item() == pytest.approx(0.35, abs=0.02)
    masked_generative(ones, ones, watch, mask_ratio=0.65)
    assert not torch.equal(seen[0], seen[1])


def test_the_papers_scale():
    # "About 21 times" is 2e-5 · C · h · w for 256 channels at 64×64.
    student, teacher = torch.randn(1, 256, 64, 64), torch.randn(1, 256, 64, 64)
    options = {"regenerate": nn.Identity(), "mask_ratio": 0.75}
    factor = scale_between("masked_generative", "mean", "paper", student, teacher, **options)
    assert factor == pytest.approx(20.97, abs=0.01)


def test_scale_between_leaves_the_random_numbers_alone():
    student, teacher, _ = maps()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    scale_between("masked_generative", "mean", "paper", student, teacher, regenerate=nn.Identity())
    assert torch.equal(torch.rand(3), expected)


def test_house_rules():
    check_house_rules(loss)


def test_what_is_masked_does_not_reach_the_generator():
    student, teacher, _ = maps()
    mask = torch.ones(2, 6, 7, dtype=torch.bool)
    mask[:, 3:] = False
    student = student.detach().masked_fill(~mask[:, None], torch.nan).requires_grad_()
    torch.manual_seed(0)
    term = MaskedGenerative(5)
    value = term(student, teacher, mask)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in term.parameters())


def test_gradcheck():
    check_gradient(loss)
    torch.manual_seed(0)
    generator = MaskedGenerative(3).regenerate.double()
    kept = torch.tensor([[[True, False, True], [True, True, False]]]).expand(2, 2, 3)
    check_gradient(
        lambda s, t, mask, labels: masked_generative(s, t, generator, kept=kept, mask=mask)
    )


sizes = st.integers(1, 5)


@settings(max_examples=25, deadline=None)
@given(n=sizes, c=sizes, h=sizes, w=sizes, seed=st.integers(0, 100))
def test_properties(n, c, h, w, seed):
    for check in (check_batch_size, check_map_size, check_mask_is_a_selection):
        check(loss, n, c, h, w, seed)


def test_the_generator_learns():
    torch.manual_seed(0)
    student, teacher, _ = maps()
    term = MaskedGenerative(5, mask_ratio=0.5)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.01)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = term(student.detach(), teacher)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.9 * sum(values[:10])
    assert sum(p.numel() for p in MaskedGenerative(64).parameters()) == 18 * 64**2 + 2 * 64


def test_compile():
    student, teacher, _ = maps()
    kept = torch.rand(2, 6, 7) > 0.5
    generator = MaskedGenerative(5).regenerate
    compiled = torch.compile(masked_generative, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(student, teacher, generator, kept=kept),
        masked_generative(student, teacher, generator, kept=kept),
    )


def test_module_stores_its_arguments():
    student, teacher, _ = maps()
    term = MaskedGenerative(5, mask_ratio=0.5, convention="paper")
    assert term.wants.adapter
    torch.manual_seed(1)
    value = term(student, teacher)
    torch.manual_seed(1)
    assert torch.equal(
        value,
        masked_generative(student, teacher, term.regenerate, mask_ratio=0.5, convention="paper"),
    )
    assert "mask_ratio=0.5, convention='paper'" in repr(term)


def test_exceptions():
    student, teacher, _ = maps()
    with pytest.raises(ValueError, match="mask_ratio is 1"):
        MaskedGenerative(5, mask_ratio=1)
    with pytest.raises(ValueError, match="channels is 0"):
        MaskedGenerative(0)
    with pytest.raises(ValueError, match="5 channels and teacher 4: put a 1x1"):
        masked_generative(student, teacher[:, :4], nn.Identity())
    with pytest.raises(ValueError, match=r"the generator made \(2, 3, 6, 7\)"):
        masked_generative(student, teacher, nn.Conv2d(5, 3, 1))
    with pytest.raises(ValueError, match=r"mask is torch\.float32"):
        masked_generative(student, teacher, nn.Identity(), kept=torch.ones(2, 6, 7))
