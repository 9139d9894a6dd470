from __future__ import annotations

import pytest
import torch

from densekd.config.names import LOSSES
from densekd.losses import conventions, pair_wise, pixel_wise, scale_between


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.randn(4, 5, 6, 7, generator=g), torch.randn(4, 5, 6, 7, generator=g)


@pytest.mark.parametrize(
    ("before", "after", "factor"),
    [
        ("ifvd", "paper", 5),
        ("cirkd", "mmrazor", 42),
        ("paper", "cirkd", 1),
        ("mmrazor", "ifvd", 1 / 210),
    ],
)
def test_pixel_wise_factors_are_shapes(pair, before, after, factor):
    assert scale_between("pixel_wise", before, after, *pair) == pytest.approx(factor, rel=1e-5)


def test_the_factor_translates_weights(pair):
    factor = scale_between(pair_wise, "cirkd", "paper", *pair)
    there = 10 * pair_wise(*pair, convention="cirkd")
    assert float(10 / factor * pair_wise(*pair)) == pytest.approx(float(there), rel=1e-5)


def test_options_reach_both(pair):
    at_4 = scale_between(pixel_wise, "ifvd", "cirkd", *pair, temperature=4.0)
    assert at_4 == pytest.approx(16 * 5, rel=1e-4)


def test_every_term_of_a_recipe_has_an_answer(pair):
    known = set(conventions._LOSSES) | set(conventions._ONE_CONVENTION)
    assert known == set(LOSSES)
    for name in conventions._ONE_CONVENTION:
        with pytest.raises(ValueError, match=f"{name} has one convention"):
            scale_between(name, "paper", "mmrazor", *pair)


def test_exception(pair):
    with pytest.raises(
        ValueError, match="choose one of 'pixel_wise', 'pair_wise', 'attention_transfer'"
    ):
        scale_between("pixelwise", "paper", "cirkd", *pair)
    with pytest.raises(ValueError, match="leaves no ratio"):
        scale_between("pair_wise", "paper", "cirkd", pair[0], pair[0])
