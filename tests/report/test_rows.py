"""The numbers of a report: spread, gain by pairs of seeds, share of the gap."""

import pytest

from densekd.report.diagrams import gap_bar
from densekd.report.rows import (
    ALONE,
    DISTILLED,
    TEACHER,
    Row,
    headline,
    main_columns,
    mean_std,
    number,
    paired,
    share_of_gap,
)
from densekd.report.tables import verdict
from densekd.tasks import Column

MIOU = Column("miou", "mIoU (%)", 100, 2)
ABS_REL = Column("abs_rel", "AbsRel", 1, 3)


def row(title, role, key, values, seeds=None):
    seeds = list(range(len(values))) if seeds is None else seeds
    return Row(title, role, scores=[{key: v} for v in values], seeds=seeds)


def test_share_of_the_gap_by_hand():
    assert share_of_gap(0.40, 0.45, 0.60) == pytest.approx(0.25)
    assert share_of_gap(0.40, 0.65, 0.60) == pytest.approx(1.25)
    assert share_of_gap(0.40, 0.35, 0.60) == pytest.approx(-0.25)
    # AbsRel falls from 0.30 to 0.25 where the teacher has 0.20.
    assert share_of_gap(0.30, 0.25, 0.20, smaller=True) == pytest.approx(0.5)


def test_no_gap_no_share():
    assert share_of_gap(0.5, 0.6, 0.5) is None
    assert share_of_gap(0.5, 0.6, 0.4) is None
    assert share_of_gap(0.2, 0.1, 0.3, smaller=True) is None
    assert share_of_gap(None, 0.6, 0.7) is None


def test_headline_takes_the_best_row_and_pairs_seeds():
    rows = [
        row("teacher", TEACHER, "miou", [0.60]),
        row("student alone", ALONE, "miou", [0.40, 0.44], [0, 1]),
        row("+Pi", DISTILLED, "miou", [0.45, 0.46], [0, 1]),
        row("+Pi +Pa", DISTILLED, "miou", [0.48, 0.50], [1, 2]),
    ]
    found = headline(rows, MIOU, smaller=False)
    assert found.distilled is rows[3]
    assert found.pairs == 1  # seed 1 alone is in both
    assert found.gain == pytest.approx(0.04)
    assert found.gain_std is None
    assert found.share == pytest.approx((0.49 - 0.42) / (0.60 - 0.42))
    with_pairs = headline(rows[:3], MIOU, smaller=False)
    assert with_pairs.gain == pytest.approx((0.05 + 0.02) / 2)
    assert with_pairs.gain_std == pytest.approx(0.03 / 2**0.5)


def test_of_an_error_the_smallest_is_the_best_and_less_is_a_gain():
    rows = [
        row("student alone", ALONE, "abs_rel", [0.30]),
        row("+Pi", DISTILLED, "abs_rel", [0.25]),
        row("+Ho", DISTILLED, "abs_rel", [0.28]),
    ]
    found = headline(rows, ABS_REL, smaller=True)
    assert found.distilled is rows[1]
    assert found.gain == pytest.approx(0.05)
    assert found.share is None


def test_runs_without_scores_do_not_count():
    rows = [
        row("student alone", ALONE, "miou", [0.4]),
        Row("+Pi", DISTILLED),
        row("+Pa", DISTILLED, "miou", [None]),
    ]
    found = headline(rows, MIOU, smaller=False)
    assert found.gain is None
    assert found.distilled is rows[1]


def test_scores_as_text():
    assert mean_std(row("a", ALONE, "miou", [0.40, 0.44]), MIOU) == "42.00 ± 2.83"
    assert mean_std(row("a", ALONE, "miou", [0.40]), MIOU) == "40.00"
    assert mean_std(Row("a", ALONE), MIOU) == "–"
    assert number(-0.013, MIOU, signed=True) == "−1.30"
    assert paired(row("a", ALONE, "x", [1.0], [3]), row("b", ALONE, "x", [2.0], [4]), "x") == []


@pytest.mark.parametrize(
    ("task", "main", "smaller"),
    [("segmentation", "miou", False), ("detection", "ap", False), ("depth", "abs_rel", True)],
)
def test_every_task_names_its_main_score(task, main, smaller):
    columns, errors = main_columns(task, [])
    assert columns[0].key == main
    assert (main in errors) is smaller


def test_a_task_that_is_not_here_shows_what_its_scores_have():
    rows = [Row("a", ALONE, scores=[{"angle": 12.5, "images": 3}], seeds=[0])]
    columns, errors = main_columns("no_such_package.Task", rows)
    assert [c.key for c in columns] == ["angle"]
    assert not errors


def test_words_do_not_call_a_loss_a_closed_gap():
    rows = [
        row("teacher", TEACHER, "abs_rel", [0.20]),
        row("student alone", ALONE, "abs_rel", [0.30]),
        row("+Pi", DISTILLED, "abs_rel", [0.34]),
    ]
    found = headline(rows, ABS_REL, smaller=True)
    assert found.share == pytest.approx(-0.4)
    assert gap_bar(found, ABS_REL, smaller=True) is None
    text = verdict(found, ABS_REL, smaller=True)
    assert "0.040 higher" in text
    assert "farther from its teacher" in text
    assert "closes" not in text


def test_a_gain_within_its_spread_is_said():
    rows = [
        row("student alone", ALONE, "miou", [0.40, 0.44]),
        row("+Pi", DISTILLED, "miou", [0.43, 0.44]),
    ]
    text = verdict(headline(rows, MIOU, smaller=False), MIOU, smaller=False)
    assert "within twice its spread" in text
