"""Points of learning curves, axes, and the SVG of a chart."""

import re
from xml.etree import ElementTree

import pytest

from densekd.report.curves import (
    HEIGHT,
    WIDTH,
    Line,
    charts,
    line_chart,
    points,
    scale_ends,
    short,
    thin,
    ticks,
)
from densekd.report.records import RunRecord


def test_points_leave_out_what_is_no_number():
    rows = [{"step": 1, "a": 2.0}, {"step": 2, "a": None}, {"step": 3, "b": 1}, {"step": 4, "a": 3}]
    assert points(rows, "a") == [(1, 2), (4, 3)]
    assert points([{"step": 1, "a": True}, {"step": 2, "a": float("nan")}], "a") == []


def test_a_long_line_becomes_means_of_its_parts():
    line = [(float(i), float(2 * i)) for i in range(10)]
    assert thin(line, 5) == [(0.5, 1), (2.5, 5), (4.5, 9), (6.5, 13), (8.5, 17)]
    assert thin(line, 10) == line
    assert len(thin([(float(i), 0.0) for i in range(1007)], 150)) == 150


def test_axes_hold_the_values_and_have_round_ticks():
    for values in ([0.2, 0.9], [5, 5], [-3, 4], [1000, 90000], [0, 0]):
        low, high = scale_ends(values, logarithmic=False)
        assert low <= min(values)
        assert high >= max(values)
        found = ticks(low, high, logarithmic=False)
        assert 2 <= len(found) <= 7
        assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert ticks(0.5, 2000, logarithmic=True) == [1, 10, 100, 1000]
    assert ticks(0.8, 40, logarithmic=True) == [1, 3, 10, 30]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (123.4, "123"),
        (40000, "40k"),
        (2.5e6, "2.5M"),
        (0.00012, "1.2e−4"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_a_chart_is_sound_svg_with_every_point_inside():
    lines = [Line([(10, 3.0), (20, 1.0)], 0, "a <b>"), Line([(20, 2.0)], 9, "one point")]
    svg = line_chart(lines, 'loss "&" more')
    root = ElementTree.fromstring(str(svg))
    assert 'loss "&" more over steps' in root.get("aria-label")
    (line,) = root.findall("polyline")
    assert line.get("class") == "line s0"
    assert line.find("title").text == "a <b>: 1 at step 20"
    (dot,) = root.findall("circle")
    assert (dot.get("class"), dot.get("data-row")) == ("dot s1", "9")
    for x, y in re.findall(r"([\d.]+),([\d.]+)", line.get("points")):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT
    first, last = line.get("points").split()
    assert float(first.split(",")[1]) < float(last.split(",")[1])  # 3 stands above 1


def test_charts_begin_with_the_score_and_skip_one_that_is_known_once(tmp_path):
    rows = [
        {"step": 1, "task/ce": 1.0, "loss": 2.0, "lr": 0.1, "memory_gb": 1.0},
        {"step": 1, "val/miou": 0.2, "val/pixels": 9},
        {"step": 2, "task/ce": 0.5, "distill/pixel_wise": 1.0, "loss": 1.5, "lr": 0.05},
    ]
    run = RunRecord(tmp_path, {}, metrics=rows)
    found = charts([("a", [run])], "miou", "mIoU (%)")
    assert [c.key for c in found] == ["loss", "task/ce", "distill/pixel_wise", "lr"]
    twice = RunRecord(tmp_path, {}, metrics=[*rows, {"step": 2, "val/miou": 0.3}])
    assert charts([("a", [twice])], "miou", "mIoU (%)")[0].key == "val/miou"


def test_a_wide_range_has_a_log_axis(tmp_path):
    run = RunRecord(tmp_path, {}, metrics=[{"step": 1, "loss": 100.0}, {"step": 2, "loss": 0.1}])
    (chart,) = charts([("a", [run])], "miou", "mIoU")
    assert chart.logarithmic
