"""Whether a teacher is good enough to teach: above a constant guess, and above the student that learned alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# Without a spread over seeds, the part of the lone student's score by which a teacher should be better.
CLEARLY = 0.05
# The part of the way from a constant guess to a perfect score below which a network knows nothing.
NOTHING = 0.05
REMEDY = (
    "Distillation can hardly help then. Train the teacher longer, on a stronger network and with the student's own "
    "class weights and augmentation, or take one that is clearly better"
)


def margin(alone: Sequence[float]) -> float:
    """How much better than the mean of `alone` a teacher should be: two standard deviations over the seeds.

    With a single score there is no deviation; `CLEARLY` of it stands in.
    """
    if len(alone) > 1:
        return 2 * statistics.stdev(alone)
    return CLEARLY * abs(alone[0])


def is_above(teacher: float, alone: Sequence[float], *, smaller_is_better: bool) -> bool:
    """Whether the teacher's score is better than that of the student alone by more than `margin`.

    Args:
        alone: a score a seed, at least one.
    """
    lead = teacher - statistics.fmean(alone)
    return (-lead if smaller_is_better else lead) > margin(alone)


def gained(score: float, constant: float, *, smaller_is_better: bool) -> float:
    """The part of the way from a constant guess to the best possible score: 0 is the guess, 1 is perfect.

    Of an error the best is 0, of any other score 1. Negative where the guess is better.
    """
    best = 0.0 if smaller_is_better else 1.0
    if constant == best:
        return 0.0
    return (score - constant) / (best - constant)
