"""Whether a teacher is above its student and above a guess, by hand."""

import pytest

from densekd.workflows.verdict import gained, is_above, margin


def test_one_seed_asks_for_a_twentieth():
    assert margin([0.4]) == pytest.approx(0.02)
    assert is_above(0.43, [0.4], smaller_is_better=False)
    assert not is_above(0.41, [0.4], smaller_is_better=False)


def test_several_seeds_ask_for_two_deviations():
    # deviation of 0.40, 0.42, 0.44 is 0.02
    alone = [0.40, 0.42, 0.44]
    assert margin(alone) == pytest.approx(0.04)
    assert is_above(0.465, alone, smaller_is_better=False)
    assert not is_above(0.455, alone, smaller_is_better=False)


def test_an_error_should_be_smaller():
    assert is_above(0.10, [0.2], smaller_is_better=True)
    assert not is_above(0.30, [0.2], smaller_is_better=True)


@pytest.mark.parametrize(
    ("score", "constant", "smaller", "expected"),
    [(0.3, 0.3, False, 0.0), (0.65, 0.3, False, 0.5), (0.1, 0.4, True, 0.75), (1.0, 1.0, False, 0.0)],
)  # fmt: skip
def test_the_way_from_a_guess(score, constant, smaller, expected):
    assert gained(score, constant, smaller_is_better=smaller) == pytest.approx(expected)
