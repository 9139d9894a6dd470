"""The picture of score against latency."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from densekd.report.pareto import Point, front, pareto_svg

POINTS = [
    Point("teacher", 100.0, 70.0, "PyTorch"),
    Point("student <1>", 10.0, 65.0, "PyTorch"),
    Point("beaten", 20.0, 60.0, "ONNX Runtime"),
]


def test_the_front_holds_what_no_other_beats():
    assert [p.name for p in front(POINTS)] == ["student <1>", "teacher"]
    errors = [Point("a", 1, 0.5), Point("b", 2, 0.2), Point("c", 3, 0.3)]
    assert [p.name for p in front(errors, smaller=True)] == ["a", "b"]


def test_the_picture_is_xml_with_every_point_in_its_place():
    root = ElementTree.fromstring(pareto_svg(POINTS, heading="mIoU (%)", where="64×96, 1 thread"))
    tag = "{http://www.w3.org/2000/svg}"
    circles = {c.get("cx"): c for c in root.iter(f"{tag}circle") if c.get("r") == "6"}
    assert len(circles) == 3
    texts = [t.text for t in root.iter(f"{tag}text")]
    assert {"teacher", "student <1>", "beaten", "mIoU (%)"} <= set(texts)
    places = [(float(c.get("cx")), float(c.get("cy"))) for c in circles.values()]
    (teacher, student, beaten) = places
    assert student[0] < beaten[0] < teacher[0]  # slower is further right
    assert teacher[1] < student[1] < beaten[1]  # better is higher


def test_one_point_is_enough_and_none_is_not():
    assert "<circle" in pareto_svg(POINTS[:1], heading="AP", where="")
    with pytest.raises(ValueError, match="at least one network"):
        pareto_svg([], heading="AP", where="")
